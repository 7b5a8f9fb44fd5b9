//! Tables and plots.

use crate::experiments::Experiment;
use crate::network::Outcome;
use std::collections::BTreeMap;
use std::fmt::{self, Write};

/// Mean and standard error over seeds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    mean: f64,
    standard_error: f64,
    n: usize,
}

impl Summary {
    /// `None` without values.
    pub fn of(values: &[f64]) -> Option<Self> {
        let n = values.len();
        if n == 0 {
            return None;
        }
        let mean = values.iter().sum::<f64>() / n as f64;
        let squares: f64 = values.iter().map(|x| (x - mean) * (x - mean)).sum();
        let standard_error = if n > 1 {
            (squares / (n as f64 - 1.0) / n as f64).sqrt()
        } else {
            // NaN and not zero: one seed has no error that could be known, and zero would read as certainty.
            f64::NAN
        };
        Some(Self {
            mean,
            standard_error,
            n,
        })
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.n {
            1 => write!(f, "{:.3} (one seed)", self.mean),
            _ => write!(f, "{:.3} ± {:.3}", self.mean, self.standard_error),
        }
    }
}

/// Results of an arm.
struct Row {
    label: String,
    loss: Option<Summary>,
    /// Loss over the first arm's, paired by seed, per cent.
    over_first: Option<Summary>,
    update_bytes: f64,
    published_bytes: f64,
    /// Mean curve.
    curve: Vec<(f64, f64)>,
}

/// Results of an experiment.
pub struct Table {
    title: String,
    rows: Vec<Row>,
    /// Loss of each arm relative to the first by the published law, a factor.
    law: Vec<f64>,
}

impl Table {
    /// Collects the stored results. `parameters` is the size of the model, for the law.
    pub fn new(
        experiment: &Experiment,
        done: &BTreeMap<String, Outcome>,
        model: &str,
        seeds: u64,
        parameters: u64,
    ) -> Self {
        let by_law = |(a, exponent): &(f64, f64)| a * (parameters as f64).powf(*exponent);
        let first_by_law = experiment.law.first().map_or(1.0, by_law);
        let outcomes = |arm: &crate::arm::Arm| -> Vec<(u64, &Outcome)> {
            (1..=seeds)
                .filter_map(|seed| Some((seed, done.get(&arm.key(model, seed))?)))
                .collect()
        };
        let first: BTreeMap<u64, f64> = experiment
            .arms
            .first()
            .map(|(_, arm)| outcomes(arm).iter().map(|(seed, o)| (*seed, o.loss)).collect())
            .unwrap_or_default();
        let rows = experiment.arms.iter().map(|(label, arm)| {
            let of_arm = outcomes(arm);
            let losses: Vec<f64> = of_arm.iter().map(|(_, o)| o.loss).collect();
            let over: Vec<f64> = of_arm
                .iter()
                // Paired by seed: whatever a seed does to all arms alike cancels.
                .filter_map(|(seed, o)| Some(100.0 * (o.loss / first.get(seed)? - 1.0)))
                .collect();
            let mean = |of: &dyn Fn(&Outcome) -> f64| {
                of_arm.iter().map(|(_, o)| of(o)).sum::<f64>() / of_arm.len().max(1) as f64
            };
            let points = of_arm.first().map_or(0, |(_, o)| o.curve.len());
            let curve = (0..points)
                .map(|i| {
                    let at = |o: &Outcome| o.curve.get(i).copied().unwrap_or_default();
                    (mean(&|o| f64::from(at(o).0)), mean(&|o| at(o).1))
                })
                .collect();
            Row {
                label: label.clone(),
                loss: Summary::of(&losses),
                over_first: Summary::of(&over),
                update_bytes: mean(&|o| o.update_bytes),
                published_bytes: mean(&|o| o.published_bytes),
                curve,
            }
        });
        Self {
            title: format!("{}: {}", experiment.name, experiment.question),
            rows: rows.collect(),
            // Only ratios of the law are shown: its absolute losses are of other text and another tokenizer.
            law: experiment.law.iter().map(|law| by_law(law) / first_by_law).collect(),
        }
    }

    /// Plot of the held-out loss over rounds, one line for each arm.
    pub fn svg(&self) -> String {
        let plot = Plot::of(self);
        let mut out = head(Plot::WIDTH, Plot::HEIGHT, Plot::LEFT, &self.title);
        plot.draw_axes(&mut out);
        for (number, row) in self.rows.iter().enumerate() {
            plot.draw_row(&mut out, number, row);
        }
        plot.draw_law(&mut out);
        out.push_str("</svg>\n");
        out
    }
}

/// Scales of a plot of curves.
struct Plot {
    /// Range of the losses.
    low: f64,
    high: f64,
    /// Last round.
    last: f64,
    /// Loss at which each arm ends by the published law, if the first arm ends where it did; empty without a law.
    ends: Vec<f64>,
}

impl Plot {
    const WIDTH: f64 = 900.0;
    const HEIGHT: f64 = 420.0;
    const LEFT: f64 = 60.0;
    const BOTTOM: f64 = 40.0;
    const TOP: f64 = 30.0;
    /// Room for the labels.
    const RIGHT: f64 = 330.0;
    const PLOT_WIDTH: f64 = Self::WIDTH - Self::LEFT - Self::RIGHT;

    fn of(table: &Table) -> Self {
        let (mut low, mut high, mut last) = (f64::INFINITY, f64::NEG_INFINITY, 1f64);
        for (x, y) in table.rows.iter().flat_map(visible) {
            (low, high, last) = (low.min(*y), high.max(*y), last.max(*x));
        }
        let first_end = table.rows.first().and_then(|row| row.curve.last()).map(|(_, y)| *y);
        let ends: Vec<f64> = first_end
            .iter()
            .flat_map(|end| table.law.iter().map(move |factor| end * factor))
            .collect();
        for y in &ends {
            (low, high) = (low.min(*y), high.max(*y));
        }
        if low >= high {
            (low, high) = (0.0, 1.0);
        }
        Self { low, high, last, ends }
    }

    /// Coordinates of a round and a loss.
    fn place(&self, x: f64, y: f64) -> (f64, f64) {
        (
            Self::LEFT + x / self.last * Self::PLOT_WIDTH,
            Self::TOP + (self.high - y) / (self.high - self.low) * (Self::HEIGHT - Self::TOP - Self::BOTTOM),
        )
    }

    fn draw_axes(&self, out: &mut String) {
        let plot_width = Self::PLOT_WIDTH;
        for i in 0..=4 {
            let y = self.low + (self.high - self.low) * f64::from(i) / 4.0;
            let (x0, at) = self.place(0.0, y);
            let _ = writeln!(
                out,
                "<path d=\"M{x0:.1} {at:.1}h{plot_width:.1}\" stroke=\"#ddd\"/><text x=\"8\" y=\"{:.1}\">{y:.3}</text>",
                at + 4.0
            );
        }
        let _ = writeln!(
            out,
            "<text x=\"{}\" y=\"{:.1}\">rounds, to {:.0}; held-out loss, nats per token</text>",
            Self::LEFT,
            Self::HEIGHT - 12.0,
            self.last
        );
    }

    /// An arm's curve and its label.
    fn draw_row(&self, out: &mut String, number: usize, row: &Row) {
        let colour = COLOURS[number % COLOURS.len()];
        // E4 has more arms than there are colours that can be told apart: the next eight are dashed.
        let dash = match number / COLOURS.len() {
            0 => "",
            1 => " stroke-dasharray=\"5 3\"",
            _ => " stroke-dasharray=\"2 2\"",
        };
        let line: Vec<String> = visible(row)
            .map(|(x, y)| self.place(*x, *y))
            .map(|(x, y)| format!("{x:.1},{y:.1}"))
            .collect();
        let (x, y) = (Self::WIDTH - 310.0, Self::TOP + 14.0 + 16.0 * number as f64);
        let _ = writeln!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.6\"{dash}/><path d=\"M{x} {:.1}h20\" stroke=\"{colour}\" stroke-width=\"2\"{dash}/><text x=\"{}\" y=\"{y}\">{}</text>",
            line.join(" "),
            y - 4.0,
            x + 26.0,
            escape(&row.label) + if row.curve.is_empty() { " (no result)" } else { "" }
        );
    }

    /// Short dashes at the ends by the law.
    fn draw_law(&self, out: &mut String) {
        for (number, y) in self.ends.iter().enumerate().skip(1) {
            let (x, at) = self.place(self.last, *y);
            let colour = COLOURS[number % COLOURS.len()];
            let _ = writeln!(
                out,
                "<path d=\"M{:.1} {at:.1}h60\" stroke=\"{colour}\" stroke-width=\"2\" stroke-dasharray=\"3 2\"/>",
                x - 60.0
            );
        }
        if !self.ends.is_empty() {
            let _ = writeln!(
                out,
                "<text x=\"{}\" y=\"{}\">short dashes: where the published law ends,</text><text x=\"{}\" y=\"{}\">20 tokens for each parameter</text>",
                Self::WIDTH - 310.0,
                Self::HEIGHT - Self::BOTTOM - 16.0,
                Self::WIDTH - 310.0,
                Self::HEIGHT - Self::BOTTOM
            );
        }
    }
}

/// Points of a curve that are drawn: the first quarter falls so steeply that the rest could not be told apart.
fn visible(row: &Row) -> impl Iterator<Item = &(f64, f64)> {
    row.curve.iter().skip(row.curve.len() / 4)
}

/// Means with their standard errors, from −0.2 to 1: a line for each row, a colour for each group of values.
pub fn dots(title: &str, rows: &[String], groups: &[(String, Vec<Option<Summary>>)]) -> String {
    const WIDTH: f64 = 960.0;
    const LEFT: f64 = 210.0;
    const TOP: f64 = 40.0;
    const LINE: f64 = 44.0;
    const PLOT: f64 = 440.0;
    const LEAST: f64 = -0.2;
    let across = |value: f64| PLOT * (value - LEAST) / (1.0 - LEAST);
    let bottom = TOP + LINE * rows.len() as f64;
    let mut out = head(WIDTH, bottom + 40.0, 12.0, title);
    for fifth in -1..=5 {
        let value = f64::from(fifth) / 5.0;
        let x = LEFT + across(value);
        let _ = writeln!(
            out,
            "<path d=\"M{x:.1} {TOP}V{bottom:.1}\" stroke=\"#ddd\"/><text x=\"{:.1}\" y=\"{:.1}\">{value:.1}</text>",
            x - 8.0,
            bottom + 18.0
        );
    }
    for (number, row) in rows.iter().enumerate() {
        let y = TOP + LINE * (number as f64 + 0.5) + 4.0;
        let _ = writeln!(out, "<text x=\"12\" y=\"{y:.1}\">{}</text>", escape(row));
    }
    for (number, (label, values)) in groups.iter().enumerate() {
        let colour = COLOURS[number % COLOURS.len()];
        let shift = LINE * ((number as f64 + 1.0) / (groups.len() as f64 + 1.0));
        for (row, summary) in values.iter().enumerate() {
            let Some(summary) = summary else { continue };
            let (x, y) = (LEFT + across(summary.mean), TOP + LINE * row as f64 + shift);
            let reach = if summary.n > 1 {
                across(summary.standard_error) - across(0.0)
            } else {
                0.0
            };
            let _ = writeln!(
                out,
                "<path d=\"M{:.1} {y:.1}h{:.1}\" stroke=\"{colour}\"/><circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\" fill=\"{colour}\"/>",
                x - reach,
                2.0 * reach
            );
        }
        let (x, y) = (LEFT + PLOT + 40.0, TOP + 14.0 + 18.0 * number as f64);
        let _ = writeln!(
            out,
            "<circle cx=\"{x}\" cy=\"{:.1}\" r=\"3.5\" fill=\"{colour}\"/><text x=\"{}\" y=\"{y}\">{}</text>",
            y - 4.0,
            x + 12.0,
            escape(label)
        );
    }
    out.push_str("</svg>\n");
    out
}

// The palette of Okabe and Ito (2008), which colour-blind readers can tell apart, with grey for its yellow.
const COLOURS: [&str; 8] = [
    "#000000", "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#777777",
];

/// The beginning of a plot.
fn head(width: f64, height: f64, left: f64, title: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"{width}\" height=\"{height}\" fill=\"#fff\"/>\n<text x=\"{left}\" y=\"18\">{}</text>\n",
        escape(title)
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n{}\n", self.title)?;
        writeln!(
            f,
            "| arm | held-out loss | over the first | update, bytes | published, bytes |"
        )?;
        writeln!(f, "|---|---|---|---|---|")?;
        for row in &self.rows {
            let loss = row.loss.map_or("no result".into(), |s| match s.n {
                1 => format!("{:.4} (one seed)", s.mean),
                n => format!("{:.4} ± {:.4} ({n} seeds)", s.mean, s.standard_error),
            });
            let over = row.over_first.map_or(String::new(), |s| match s.n {
                1 => format!("{:+.2} %", s.mean),
                _ => format!("{:+.2} ± {:.2} %", s.mean, s.standard_error),
            });
            let bytes = |n: f64| if n > 0.0 { format!("{n:.0}") } else { String::new() };
            writeln!(
                f,
                "| {} | {loss} | {over} | {} | {} |",
                row.label,
                bytes(row.update_bytes),
                bytes(row.published_bytes)
            )?;
        }
        if !self.law.is_empty() {
            let over = self
                .law
                .iter()
                .map(|factor| format!("{:+.1} %", 100.0 * (factor - 1.0)));
            writeln!(
                f,
                "\npublished, over the first: {}",
                over.collect::<Vec<_>>().join(", ")
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summary_should_be_mean_and_standard_error() {
        let summary = Summary::of(&[1.0, 2.0, 3.0]).unwrap();
        assert!((summary.mean - 2.0).abs() < 1e-12 && (summary.standard_error - (1.0f64 / 3.0).sqrt()).abs() < 1e-12);
        assert!(Summary::of(&[]).is_none() && Summary::of(&[1.0]).unwrap().standard_error.is_nan());
    }

    #[test]
    fn dots_should_stand_at_their_means() {
        let values = vec![Summary::of(&[0.4, 0.6]), None];
        let rows = ["κ < 1".to_string(), "none".to_string()];
        let svg = dots("t", &rows, &[("4 / R".to_string(), values)]);
        // Seven twelfths of the plot's width, and its standard error of 0.1 to both sides.
        assert!(
            svg.contains("cx=\"466.7\"") && svg.contains("<path d=\"M430.0 62.0h73.3\""),
            "{svg}"
        );
        assert_eq!(svg.matches("<circle").count(), 2, "one value and its group");
        assert!(svg.contains("κ &lt; 1"));
    }

    #[test]
    fn tables_should_show_what_is_missing_and_plots_what_is_there() {
        let experiment = crate::experiments::all(crate::experiments::Scale { rounds: 4, batch: 8 }).remove(0);
        let mut done = BTreeMap::new();
        for seed in [1, 2] {
            let curve = vec![(1, 3.0), (2, 2.5 + seed as f64 / 10.0)];
            let loss = curve[1].1;
            let outcome = Outcome {
                loss,
                curve,
                update_bytes: 10.0,
                published_bytes: 0.0,
                tokens: 1,
                seconds: 1.0,
            };
            done.insert(experiment.arms[0].1.key("m", seed), outcome);
        }
        let table = Table::new(&experiment, &done, "m", 3, 1_000_000);
        let text = table.to_string();
        assert!(
            text.contains("2.6500 ± 0.0500 (2 seeds)") && text.contains("no result"),
            "{text}"
        );
        // The paper's law for a million parameters: Charles et al. 2025, continued below 35 M.
        assert!(
            text.contains("published, over the first: +0.0 %, +0.2 %, +1.3 %, +3.3 %, +6.1 %"),
            "{text}"
        );
        let svg = table.svg();
        assert_eq!(svg.matches("stroke-dasharray=\"3 2\"").count(), 4);
        assert!(svg.contains(">AdamW, data parallel<") && svg.matches("<polyline").count() == experiment.arms.len());
        assert_eq!(svg.matches("(no result)").count(), experiment.arms.len() - 1);
    }
}
