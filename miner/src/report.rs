//! Standard output: lines for people, or events as JSON for programs. Progress bars on a terminal only.

use crate::settlement::receipts::Counts;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};
use std::{
    io::{self, IsTerminal, Write},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// Interval at which an unchanged reason for waiting is repeated.
const REPEAT: Duration = Duration::from_secs(60);
/// Maximum interval between two status lines while the miner works.
const STATUS_INTERVAL: Duration = Duration::from_secs(30);
/// Planck in one ALICE, for display only.
const PLANCK_PER_ALICE: f64 = 1e12;

/// The numbers of the status line.
#[derive(Clone, Debug, Default)]
pub struct Standings {
    /// Epoch of the chain.
    pub epoch: u32,
    /// Tokens per second of the last task.
    pub tokens_per_second: Option<f64>,
    /// Training loss, nats per token.
    pub loss: Option<f64>,
    /// Numbers of submissions.
    pub counts: Counts,
    /// Last score.
    pub score: Option<f64>,
    /// Pay for epochs that this miner worked in, planck.
    pub paid: u128,
}

impl Standings {
    /// The status line at `unix_s`, of fixed width as long as the numbers fit.
    pub fn line(&self, unix_s: u64) -> String {
        let or_dash = |v: Option<f64>, decimals: usize| v.map_or("-".to_owned(), |v| format!("{v:.decimals$}"));
        let (c, alice) = (&self.counts, self.paid as f64 / PLANCK_PER_ALICE);
        format!(
            "{} epoch {:<5} {:>8} tok/s  loss {:>7}  submitted {:>4} (accepted {:>4}, late {:>3}, refused {:>3})  \
             score {:>5}  paid {alice:>11.4} ALICE",
            clock(unix_s),
            self.epoch,
            or_dash(self.tokens_per_second, 0),
            or_dash(self.loss, 3),
            c.submitted,
            c.accepted,
            c.late,
            c.refused,
            or_dash(self.score, 2),
        )
    }

    fn json(&self) -> Value {
        json!({
            "epoch": self.epoch,
            "tokens_per_second": self.tokens_per_second,
            "loss": self.loss,
            "counts": self.counts,
            "score": self.score,
            // A string, because JSON numbers lose digits.
            "paid_planck": self.paid.to_string(),
        })
    }
}

/// Writes to standard output.
pub struct Reporter {
    json: bool,
    terminal: bool,
    bar: Option<ProgressBar>,
    last_wait: Option<(String, Instant)>,
    last_status: Option<Instant>,
}

impl Reporter {
    /// A reporter for standard output.
    pub fn new(json: bool) -> Self {
        // Escape codes of a bar would spoil JSON, files and service logs.
        let terminal = !json && io::stdout().is_terminal();
        Self {
            json,
            terminal,
            bar: None,
            last_wait: None,
            last_status: None,
        }
    }

    /// Reports an event: `text` for people, `fields` for programs.
    pub fn event(&mut self, event: &str, text: &str, fields: Value) {
        // After an event the same reason is news again.
        self.last_wait = None;
        self.emit(event, text, fields);
    }

    /// Reports the reason for waiting if it is new, and again every minute.
    pub fn waiting(&mut self, why: &str) {
        if let Some((last, at)) = &self.last_wait
            && last == why
            && at.elapsed() < REPEAT
        {
            return;
        }
        self.emit("waiting", why, json!({ "reason": why }));
        self.last_wait = Some((why.to_owned(), Instant::now()));
    }

    /// Writes the status line now.
    pub fn status(&mut self, standings: &Standings) {
        self.last_status = Some(Instant::now());
        if self.json {
            self.emit("status", "", standings.json());
        } else {
            self.print(&standings.line(unix_ms() / 1000));
        }
    }

    /// Writes the status line if the last one is [`STATUS_INTERVAL`] ago.
    pub fn status_at_intervals(&mut self, standings: &Standings) {
        if self.last_status.is_none_or(|at| at.elapsed() >= STATUS_INTERVAL) {
            self.status(standings);
        }
    }

    /// A progress bar of `total` units on a terminal; an invisible one elsewhere.
    pub fn bar(&mut self, what: &str, total: u64, bytes: bool) -> ProgressBar {
        let bar = ProgressBar::with_draw_target(
            Some(total),
            if self.terminal {
                ProgressDrawTarget::stdout()
            } else {
                ProgressDrawTarget::hidden()
            },
        );
        let template = match bytes {
            true => "{prefix:<12} {bar:30} {bytes:>10}/{total_bytes} {eta:>5} {msg}",
            false => "{prefix:<12} {bar:30} {pos:>10}/{len} {eta:>5} {msg}",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_prefix(what.to_owned());
        self.bar = Some(bar.clone());
        bar
    }

    /// Removes the bar.
    pub fn bar_done(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    fn emit(&self, event: &str, text: &str, fields: Value) {
        if self.json {
            let mut object = json!({ "time_unix_ms": unix_ms(), "event": event });
            if let (Value::Object(to), Value::Object(from)) = (&mut object, fields) {
                to.extend(from);
            }
            self.print(&object.to_string());
        } else {
            self.print(&format!("{} {text}", clock(unix_ms() / 1000)));
        }
    }

    /// Write errors are ignored: a closed pipe is no reason to stop mining.
    fn print(&self, line: &str) {
        let write = || drop(writeln!(io::stdout().lock(), "{line}"));
        match &self.bar {
            // A line printed through a bar would be overwritten by its next frame.
            Some(bar) if self.terminal => bar.suspend(write),
            _ => write(),
        }
    }
}

/// Planck as ALICE, without zeros at the end.
pub fn alice(planck: u128) -> String {
    let unit = alice_primitives::emission::UNIT;
    let fraction = format!("{:012}", planck % unit);
    // Integers to the end: a float would round amounts above 9,007 ALICE.
    match fraction.trim_end_matches('0') {
        "" => format!("{} ALICE", planck / unit),
        digits => format!("{}.{digits} ALICE", planck / unit),
    }
}

fn unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        // A clock before 1970 is no reason to fail; it shows as 0.
        .map_or(0, |d| d.as_millis() as u64)
}

/// Time of day, UTC.
fn clock(unix_s: u64) -> String {
    let day = unix_s % 86_400;
    format!("{:02}:{:02}:{:02}", day / 3600, day / 60 % 60, day % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_lines_should_have_one_width() {
        let counts = Counts {
            submitted: 4,
            accepted: 3,
            refused: 1,
            ..Counts::default()
        };
        let busy = Standings {
            epoch: 3,
            tokens_per_second: Some(3210.4),
            loss: Some(2.9134),
            counts,
            score: Some(1.02),
            paid: 12_500_000_000_000,
        };
        let line = busy.line(12 * 3600 + 5);
        assert_eq!(
            line,
            "12:00:05 epoch 3         3210 tok/s  loss   2.913  submitted    4 (accepted    3, late   0, refused   1)  \
             score  1.02  paid     12.5000 ALICE"
        );
        let idle = Standings {
            epoch: 17_520,
            ..Standings::default()
        };
        assert_eq!(idle.line(86_399).len(), line.len());
        assert!(
            idle.line(86_399)
                .starts_with("23:59:59 epoch 17520        - tok/s  loss       -")
        );
        assert!(!line.contains('\u{1b}'));
    }

    #[test]
    fn amounts_should_be_exact() {
        assert_eq!(alice(0), "0 ALICE");
        assert_eq!(alice(12_500_000_000_000), "12.5 ALICE");
        assert_eq!(alice(599_315_068_493_150), "599.31506849315 ALICE");
        assert_eq!(alice(1), "0.000000000001 ALICE");
    }
}
