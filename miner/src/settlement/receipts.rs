//! Submissions with their receipts and verdicts: one JSON file each, kept for ever.
//!
//! **Format.** `receipts/<epoch, ten digits>-<submission>.json` holds a [`Record`]; the zeros make the order of names
//! the order of epochs. Receipt and verdict are signed by the server over the genesis hash, which the record contains,
//! so a file can be checked years later by anyone who knows the server's key ([`Record::verify`]).
//!
//! **States** ([`Standing`]). A record begins as Pending (a receipt) or as Late or Refused (a refusal, no receipt), and
//! a Pending one becomes Accepted, Refused or Voided by its verdict, or Voided when the time for verdicts is over.
//! Receipts are never removed from a record.
//!
//! **Durable when.** [`Receipts::put`] returns after the file is synced; memory changes after the disk, so a failed
//! write leaves both as they were, and the caller repeats it.

use crate::{MinerError, files};
use alice_api::{Hex32, Outcome, Receipt, Verdict};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// Scores are in billionths.
const SCORE_UNIT: f64 = 1e9;

/// The server's refusal of an update.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Refusal {
    /// The server's stable code.
    pub code: String,
    /// The server's reason.
    pub message: String,
}

/// One submission.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Genesis hash of the network: signatures are over it.
    pub genesis_hash: Hex32,
    /// Run.
    pub run_hash: Hex32,
    /// Submission.
    pub id: Hex32,
    /// Task.
    pub task_id: Hex32,
    /// Epoch.
    pub epoch: u32,
    /// Size of the update, bytes.
    pub bytes: u64,
    /// The server's signed statement that the update arrived in time.
    pub receipt: Option<Receipt>,
    /// The server's signed decision.
    pub verdict: Option<Verdict>,
    /// Why the server did not accept the commit.
    pub refusal: Option<Refusal>,
    /// Why no verdict is expected any more.
    pub closed: Option<String>,
}

/// State of a submission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Committed, no verdict yet.
    Pending,
    /// Accepted and paid.
    Accepted,
    /// Arrived after the deadline or the lease: never scored.
    Late,
    /// Scored and refused, or not accepted for scoring.
    Refused,
    /// Not scored through no fault of the miner.
    Voided,
}

impl Record {
    /// State of the submission.
    pub fn standing(&self) -> Standing {
        match (&self.verdict, &self.refusal) {
            // A verdict decides, whatever else the record has: it is signed, and a refusal is not.
            (Some(v), _) if v.body.outcome == Outcome::Accepted => Standing::Accepted,
            (Some(v), _) if v.body.outcome == Outcome::Voided => Standing::Voided,
            (Some(_), _) => Standing::Refused,
            // The three codes for work that arrived too late; all other refusals judge the update itself.
            (None, Some(r)) if matches!(r.code.as_str(), "late" | "lease_expired" | "no_round") => Standing::Late,
            (None, Some(_)) => Standing::Refused,
            (None, None) if self.closed.is_some() => Standing::Voided,
            (None, None) => Standing::Pending,
        }
    }

    /// Score of the verdict; `None` before there is one. 1 is the median of the keys with accepted work in the same
    /// fragment.
    pub fn score(&self) -> Option<f64> {
        self.verdict.as_ref().map(|v| v.body.score as f64 / SCORE_UNIT)
    }

    /// Outcome and reason, one line.
    pub fn reason(&self) -> String {
        match (&self.verdict, &self.refusal, &self.closed) {
            (Some(v), ..) => {
                format!(
                    "{}, score {:.2}: {}",
                    v.body.outcome.code(),
                    v.body.score as f64 / SCORE_UNIT,
                    v.body.detail
                )
            }
            (None, Some(r), _) => format!("{}, no score: {}", r.code, r.message),
            (None, None, Some(why)) => format!("no verdict, no score: {why}"),
            (None, None, None) => "committed, not scored yet".into(),
        }
    }

    /// Checks every signature, and that receipt and verdict are about this submission.
    ///
    /// # Errors
    /// The first contradiction, in words.
    pub fn verify(&self) -> Result<(), String> {
        if let Some(receipt) = &self.receipt {
            if !receipt.verify(&self.genesis_hash.0) {
                return Err("the receipt's signature does not verify".into());
            }
            if receipt.body.id != self.id || receipt.body.task_id != self.task_id || receipt.body.epoch != self.epoch {
                return Err("the receipt is about another submission".into());
            }
        }
        if let Some(verdict) = &self.verdict {
            if !verdict.verify(&self.genesis_hash.0) {
                return Err("the verdict's signature does not verify".into());
            }
            if verdict.body.id != self.id || verdict.body.epoch != self.epoch {
                return Err("the verdict is about another submission".into());
            }
            // A server cannot answer for another's receipt, even with a valid signature of its own.
            if self.receipt.as_ref().is_some_and(|r| r.ps_key != verdict.ps_key) {
                return Err("receipt and verdict are signed by different servers".into());
            }
        }
        Ok(())
    }
}

/// Numbers of submissions by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// All.
    pub submitted: u32,
    /// Accepted.
    pub accepted: u32,
    /// After the deadline.
    pub late: u32,
    /// Refused.
    pub refused: u32,
    /// Not scored through no fault of the miner.
    pub voided: u32,
    /// Without a verdict yet.
    pub pending: u32,
}

/// The records of a data directory, in memory and on disk.
#[derive(Debug)]
pub struct Receipts {
    dir: PathBuf,
    records: BTreeMap<(u32, Hex32), Record>,
}

impl Receipts {
    /// Reads the records below a data directory.
    ///
    /// # Errors
    /// A record cannot be read; damaged ones are logged and left out.
    pub fn open(data_dir: &Path) -> Result<Self, MinerError> {
        let dir = data_dir.join("receipts");
        let records = files::read_all::<Record>(&dir)?
            .into_iter()
            .map(|r| ((r.epoch, r.id), r))
            .collect();
        Ok(Self { dir, records })
    }

    /// Stores a record, on disk first.
    ///
    /// # Errors
    /// [`MinerError::Write`]; the old record is unchanged then.
    pub fn put(&mut self, record: Record) -> Result<(), MinerError> {
        files::make_dir(&self.dir)?;
        files::write_json(
            // Ten digits hold every epoch, so names sort like numbers.
            &self.dir.join(format!("{:010}-{}.json", record.epoch, record.id)),
            &record,
        )?;
        self.records.insert((record.epoch, record.id), record);
        Ok(())
    }

    /// A submission's record.
    pub fn get(&self, id: &Hex32) -> Option<&Record> {
        // From the end: the submission asked for is nearly always of the newest epoch.
        self.iter().rev().find(|r| r.id == *id)
    }

    /// All records, oldest epoch first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Record> {
        self.records.values()
    }

    /// Whether a task was answered already, successfully or not.
    pub fn has_task(&self, task: &Hex32) -> bool {
        self.iter().rev().any(|r| r.task_id == *task)
    }

    /// Number of submissions made in an epoch.
    pub fn in_epoch(&self, epoch: u32) -> u32 {
        self.records
            .range((epoch, Hex32([0; 32]))..=(epoch, Hex32([0xff; 32])))
            .count() as u32
    }

    /// The newest score.
    pub fn last_score(&self) -> Option<f64> {
        self.iter().rev().find_map(Record::score)
    }

    /// Numbers of submissions by state.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for record in self.iter() {
            counts.submitted += 1;
            match record.standing() {
                Standing::Pending => counts.pending += 1,
                Standing::Accepted => counts.accepted += 1,
                Standing::Late => counts.late += 1,
                Standing::Refused => counts.refused += 1,
                Standing::Voided => counts.voided += 1,
            }
        }
        counts
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use alice_api::{Key, ReceiptBody, VerdictBody};

    pub(crate) const GENESIS: [u8; 32] = [1; 32];

    pub(crate) fn record(epoch: u32, id: u8) -> Record {
        let key = Key::from_seed(&[2; 32]);
        let body = ReceiptBody {
            id: Hex32([id; 32]),
            task_id: Hex32([id.wrapping_add(100); 32]),
            epoch,
            miner: Hex32([3; 32]),
            payout: Hex32([4; 32]),
            blob: Hex32([5; 32]),
            bytes: 10,
            block: 6,
            sequence: 7,
        };
        Record {
            genesis_hash: Hex32(GENESIS),
            run_hash: Hex32([8; 32]),
            id: body.id,
            task_id: body.task_id,
            epoch,
            bytes: 10,
            receipt: Some(Receipt::new(&key, &GENESIS, body)),
            verdict: None,
            refusal: None,
            closed: None,
        }
    }

    pub(crate) fn verdict(record: &Record, outcome: Outcome) -> Verdict {
        let body = VerdictBody {
            id: record.id,
            epoch: record.epoch,
            outcome,
            detail: "the numbers".into(),
            improvement_nano_nats: 1,
            standard_error_nano_nats: 1,
            factor_bits: 0,
            norm_bits: 0,
            score: if outcome == Outcome::Accepted { 1_020_000_000 } else { 0 },
        };
        Verdict::new(&Key::from_seed(&[2; 32]), &GENESIS, body)
    }

    #[test]
    fn records_should_survive_a_restart_and_be_counted() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Receipts::open(dir.path()).unwrap();
        for (id, outcome) in [
            (1, Outcome::Accepted),
            (2, Outcome::NoImprovement),
            (3, Outcome::Voided),
        ] {
            let mut record = record(7, id);
            record.verdict = Some(verdict(&record, outcome));
            store.put(record).unwrap();
        }
        let refusal = |code: &str| {
            Some(Refusal {
                code: code.into(),
                message: "too late by 2 blocks".into(),
            })
        };
        store
            .put(Record {
                receipt: None,
                refusal: refusal("late"),
                ..record(8, 4)
            })
            .unwrap();
        store
            .put(Record {
                receipt: None,
                refusal: refusal("duplicate"),
                ..record(8, 5)
            })
            .unwrap();
        store.put(record(9, 6)).unwrap();
        let again = Receipts::open(dir.path()).unwrap();
        assert!(store.iter().eq(again.iter()));
        let expected = Counts {
            submitted: 6,
            accepted: 1,
            late: 1,
            refused: 2,
            voided: 1,
            pending: 1,
        };
        assert_eq!(again.counts(), expected);
        assert_eq!((again.in_epoch(7), again.in_epoch(8), again.in_epoch(10)), (3, 2, 0));
        assert!(again.has_task(&Hex32([101; 32])) && !again.has_task(&Hex32([99; 32])));
        assert_eq!(again.get(&Hex32([6; 32])).unwrap().standing(), Standing::Pending);
    }

    #[test]
    fn every_zero_should_have_a_reason() {
        let mut zero = record(1, 1);
        zero.verdict = Some(verdict(&zero, Outcome::NoImprovement));
        assert_eq!(zero.reason(), "no_improvement, score 0.00: the numbers");
        let late = Refusal {
            code: "late".into(),
            message: "2 blocks after the deadline".into(),
        };
        let late = Record {
            refusal: Some(late),
            ..record(1, 2)
        };
        assert_eq!(late.reason(), "late, no score: 2 blocks after the deadline");
        let closed = Record {
            closed: Some("24 epochs without a verdict".into()),
            ..record(1, 3)
        };
        assert_eq!(closed.reason(), "no verdict, no score: 24 epochs without a verdict");
    }

    #[test]
    fn verify_should_find_every_forgery() {
        let mut good = record(1, 1);
        good.verdict = Some(verdict(&good, Outcome::Accepted));
        assert_eq!(good.verify(), Ok(()));
        assert!(
            Record {
                genesis_hash: Hex32([9; 32]),
                ..good.clone()
            }
            .verify()
            .is_err()
        );
        assert!(
            Record {
                epoch: 2,
                ..good.clone()
            }
            .verify()
            .is_err()
        );
        let mut forged = good.clone();
        if let Some(v) = &mut forged.verdict {
            v.body.score += 1;
        }
        assert!(forged.verify().unwrap_err().contains("verdict's signature"));
        let mut swapped = good.clone();
        swapped.verdict = Some(verdict(&record(1, 2), Outcome::Accepted));
        assert!(swapped.verify().unwrap_err().contains("another submission"));
    }
}
