//! The task in hand, written to disk before each step is taken, so that `kill -9` at any instant loses no finished work
//! and sends nothing twice under another name.
//!
//! ```text
//! Idle ──claim──▶ Leased ──train, encode──▶ Ready ──declare, upload, commit──▶ receipt stored
//!  ▲                                                                                │
//!  └────────────────────── residual renamed into place ◀────────────────────────────┘
//! ```
//!
//! **Format.** `journal.json` holds one [`State`] as JSON. `outgoing.update` is the encoded update, `outgoing.ledger`
//! the [residual's ledger](super::residual) as it will be once the update is committed. Each is replaced in one step.
//!
//! **States.** `Idle`: no work. `Leased`: a task was claimed, and nothing of its training is on disk. `Ready`: update
//! and staged ledger are complete; the journal is written last of the three, so it never names a file that is not
//! there.
//!
//! **Recovery.** A start reads the journal and the facts around it ([`Recovered`]: staged ledger, receipt, refusal, the
//! server's block) and takes the one step that is missing. [`next_step`] is a pure function of the two, and the same
//! function drives the miner when nothing has crashed: recovery is no special case. A step that fails, for want of disk
//! space for example, is simply the missing step again.
//!
//! **Durable when.** A lease before training begins. Update and ledger before the first byte is sent: the identifier is
//! made of task, key and bytes, so the same bytes are the same submission however often they are sent. The receipt
//! before the residual changes, and the residual before the journal forgets the update; a crash between the two finds
//! no staged ledger and adopts nothing a second time.
//!
//! A damaged journal counts as `Idle`: the work in it is lost, and the miner runs on.

use crate::{MinerError, files, task::residual::staged_file};
use alice_api::{Hex32, Lease};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// An encoded update that is to be sent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outgoing {
    /// Submission, made of task, miner and bytes: the same bytes are always the same submission.
    pub id: Hex32,
    /// Lease of its task.
    pub lease: Lease,
    /// BLAKE3 of the update.
    pub blob: Hex32,
    /// Size of the update, bytes.
    pub bytes: u64,
}

/// State of the task in hand.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum State {
    /// No work in hand.
    #[default]
    Idle,
    /// A task is leased; nothing of its training is on disk.
    Leased {
        /// The lease.
        lease: Lease,
    },
    /// The update is encoded and stored; the server may or may not have it.
    Ready {
        /// The update.
        outgoing: Outgoing,
    },
}

/// Facts that a start finds besides the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// Whether the lease is of the run that is mined now.
    pub same_run: bool,
    /// Whether the residual for after the commit is staged and not yet adopted.
    pub residual_staged: bool,
    /// Whether a receipt for the update is stored.
    pub receipt_stored: bool,
    /// Whether a refusal of the update is stored, or the miner has given it up.
    pub refusal_stored: bool,
    /// The server's block.
    pub block: u32,
}

/// The one step that is missing.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Ask for a task.
    Claim,
    /// Train for this lease.
    Train(Lease),
    /// Declare, upload and commit the stored bytes; if they are damaged, ask the server whether it has them.
    Send(Outgoing),
    /// The receipt is stored: make the staged residual the valid one.
    AdoptResidual(Outgoing),
    /// The update was refused: make the staged residual the valid one, with the update's values returned to it.
    RestoreResidual(Outgoing),
    /// The task is over, for this reason: go to `Idle` and remove its files.
    Clear(&'static str),
}

/// Whether work for a lease may still begin at this block of the server.
pub fn lasts(lease: &Lease, block: u32) -> bool {
    block < lease.task.deadline_block.min(lease.task.lease_block)
}

/// The step that is missing, after a crash or in normal work.
pub fn next_step(state: &State, facts: Recovered) -> Step {
    match state {
        State::Idle => Step::Claim,
        State::Leased { .. } if !facts.same_run => Step::Clear("the task belongs to another run"),
        State::Leased { lease } if lasts(lease, facts.block) => Step::Train(lease.clone()),
        State::Leased { .. } => Step::Clear("the task's time is over"),
        State::Ready { outgoing } => match facts {
            Recovered {
                receipt_stored: true,
                residual_staged: true,
                ..
            } => Step::AdoptResidual(outgoing.clone()),
            Recovered {
                receipt_stored: true, ..
            } => Step::Clear("committed"),
            Recovered {
                refusal_stored: true,
                residual_staged: true,
                ..
            } => Step::RestoreResidual(outgoing.clone()),
            Recovered {
                refusal_stored: true, ..
            } => Step::Clear("refused"),
            // Even after the deadline, or with damaged bytes: the server may have the update already, and then it
            // answers with the same receipt.
            _ => Step::Send(outgoing.clone()),
        },
    }
}

/// Called after every write; its error ends the sequence there, as a kill would.
type Hook<'a> = &'a mut dyn FnMut() -> Result<(), MinerError>;

/// The journal of a run's directory, with the files that belong to it.
#[derive(Debug)]
pub struct Journal {
    dir: PathBuf,
    state: State,
}

impl Journal {
    /// Reads the journal of a run's directory; a damaged one counts as `Idle`.
    ///
    /// # Errors
    /// The disk does not answer: a journal that exists is never taken for a missing one.
    pub fn open(run_dir: &Path) -> Result<Self, MinerError> {
        files::make_dir(run_dir)?;
        let path = run_dir.join("journal.json");
        // A file too long to be a journal is a damaged one.
        let bytes = match files::len(&path)? {
            Some(len) if len > files::JSON_BYTES_MAX => Some(Vec::new()),
            _ => files::read_optional(&path, files::JSON_BYTES_MAX)?,
        };
        let state = bytes.map_or(Ok(State::Idle), |bytes| serde_json::from_slice(&bytes));
        let state = state.unwrap_or_else(|error| {
            tracing::warn!(%error, path = %path.display(), "the journal is damaged; the task in it is lost");
            State::Idle
        });
        Ok(Self {
            dir: run_dir.to_owned(),
            state,
        })
    }

    /// State of the task in hand.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// File of the encoded update.
    pub fn update_file(&self) -> PathBuf {
        self.dir.join("outgoing.update")
    }

    /// Goes to `Leased`.
    ///
    /// # Errors
    /// [`MinerError::Write`]; the state is unchanged then.
    pub fn leased(&mut self, lease: Lease) -> Result<(), MinerError> {
        self.write(State::Leased { lease })
    }

    /// Stores the update and the staged ledger, then goes to `Ready`.
    ///
    /// # Errors
    /// [`MinerError::Write`]; the state is unchanged then.
    pub fn ready(&mut self, outgoing: Outgoing, update: &[u8], ledger: &[u8]) -> Result<(), MinerError> {
        self.ready_through(outgoing, update, ledger, &mut || Ok(()))
    }

    fn ready_through(
        &mut self,
        outgoing: Outgoing,
        update: &[u8],
        ledger: &[u8],
        written: Hook<'_>,
    ) -> Result<(), MinerError> {
        files::write_atomic(&self.update_file(), update)?;
        written()?;
        files::write_atomic(&staged_file(&self.dir), ledger)?;
        written()?;
        self.write(State::Ready { outgoing })?;
        written()
    }

    /// The stored update; `None` if it is missing or damaged.
    ///
    /// # Errors
    /// It cannot be read: it may be committed already, so the miner must not take it for lost.
    pub fn update(&self, outgoing: &Outgoing) -> Result<Option<Vec<u8>>, MinerError> {
        let path = self.update_file();
        if files::len(&path)? != Some(outgoing.bytes) {
            return Ok(None);
        }
        let bytes = files::read_optional(&path, outgoing.bytes)?;
        Ok(bytes.filter(|b| Hex32(*blake3::hash(b).as_bytes()) == outgoing.blob))
    }

    /// Goes to `Idle` and removes the task's files. The journal first: the next task overwrites files without a
    /// journal, but a journal without files would be a damaged update.
    ///
    /// # Errors
    /// [`MinerError::Write`].
    pub fn clear(&mut self) -> Result<(), MinerError> {
        self.clear_through(&mut || Ok(()))
    }

    fn clear_through(&mut self, written: Hook<'_>) -> Result<(), MinerError> {
        self.write(State::Idle)?;
        written()?;
        files::remove(&self.update_file())?;
        written()?;
        files::remove(&staged_file(&self.dir))?;
        written()
    }

    fn write(&mut self, state: State) -> Result<(), MinerError> {
        files::write_json(&self.dir.join("journal.json"), &state)?;
        self.state = state;
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use alice_api::{Key, Task};

    pub(crate) fn lease(epoch: u32) -> Lease {
        let task = Task {
            task_id: Hex32([1; 32]),
            run_hash: Hex32([2; 32]),
            epoch,
            base_root: Hex32([3; 32]),
            base_step: epoch,
            slice: 0,
            fragment: 0,
            epoch_seed: Hex32([4; 32]),
            steps: 1,
            batch_sequences: 1,
            miner: Hex32([5; 32]),
            payout: Hex32([6; 32]),
            lease_block: epoch * 30 + 20,
            deadline_block: epoch * 30 + 18,
        };
        Lease::new(&Key::from_seed(&[7; 32]), &[0; 32], task)
    }

    fn outgoing(bytes: &[u8]) -> Outgoing {
        let blob = Hex32(*blake3::hash(bytes).as_bytes());
        Outgoing {
            id: Hex32([9; 32]),
            lease: lease(1),
            blob,
            bytes: bytes.len() as u64,
        }
    }

    const IN_TIME: Recovered = Recovered {
        same_run: true,
        residual_staged: true,
        receipt_stored: false,
        refusal_stored: false,
        block: 40,
    };

    #[test]
    fn a_lease_should_be_used_while_it_lasts() {
        let lease = lease(1);
        let state = State::Leased { lease: lease.clone() };
        assert_eq!(next_step(&state, IN_TIME), Step::Train(lease.clone()));
        assert_eq!(
            next_step(&state, Recovered { block: 47, ..IN_TIME }),
            Step::Train(lease)
        );
        assert!(matches!(
            next_step(&state, Recovered { block: 48, ..IN_TIME }),
            Step::Clear(_)
        ));
        assert!(matches!(
            next_step(
                &state,
                Recovered {
                    same_run: false,
                    ..IN_TIME
                }
            ),
            Step::Clear(_)
        ));
    }

    #[test]
    fn the_same_bytes_should_be_sent_until_there_is_an_answer() {
        let out = outgoing(b"update");
        let state = State::Ready { outgoing: out.clone() };
        // Killed before, during or after the upload, even after the deadline: the same step.
        for block in [0, 40, 48, 1000] {
            assert_eq!(
                next_step(&state, Recovered { block, ..IN_TIME }),
                Step::Send(out.clone())
            );
        }
        // Killed between the receipt and the residual.
        let receipt = Recovered {
            receipt_stored: true,
            ..IN_TIME
        };
        assert_eq!(next_step(&state, receipt), Step::AdoptResidual(out.clone()));
        // Killed between the residual and the journal: never adopted twice.
        assert!(matches!(
            next_step(
                &state,
                Recovered {
                    residual_staged: false,
                    ..receipt
                }
            ),
            Step::Clear(_)
        ));
        let refusal = Recovered {
            refusal_stored: true,
            ..IN_TIME
        };
        assert_eq!(next_step(&state, refusal), Step::RestoreResidual(out));
        assert!(matches!(
            next_step(
                &state,
                Recovered {
                    residual_staged: false,
                    ..refusal
                }
            ),
            Step::Clear(_)
        ));
    }

    /// Runs the whole sequence on real files with a crash (the value dropped, the directory opened again) after each
    /// write, and checks that exactly one receipt and one residual come out.
    #[test]
    fn a_crash_after_any_write_should_end_with_the_same_files() {
        // Lease 1; update 2, ledger 3, journal 4; the server's answer 5; residual 6; journal 7 and both files.
        for crash_after in 1..=10 {
            let dir = tempfile::tempdir().unwrap();
            let ledger = dir.path().join("ledger-0.bin");
            std::fs::write(&ledger, "old").unwrap();
            let (mut receipt, mut sent, mut writes, mut trained) = (false, Vec::new(), 0, 0);
            let mut journal = Journal::open(dir.path()).unwrap();
            loop {
                let facts = Recovered {
                    residual_staged: staged_file(dir.path()).exists(),
                    receipt_stored: receipt,
                    ..IN_TIME
                };
                let mut written = || {
                    writes += 1;
                    assert!(writes < 30);
                    if writes == crash_after {
                        Err(MinerError::Stopped)
                    } else {
                        Ok(())
                    }
                };
                let result = match next_step(journal.state(), facts) {
                    Step::Claim if receipt => break,
                    Step::Claim => journal.leased(lease(1)).and_then(|()| written()),
                    Step::Train(_) => {
                        trained += 1;
                        journal.ready_through(outgoing(b"update"), b"update", b"new", &mut written)
                    }
                    Step::Send(out) => {
                        sent.push((out.id, journal.update(&out).unwrap().unwrap()));
                        // The server has it from here on; the receipt is stored only if we live on.
                        let stored = written();
                        receipt = stored.is_ok();
                        stored
                    }
                    Step::AdoptResidual(_) => files::rename(&staged_file(dir.path()), &ledger).and_then(|()| written()),
                    Step::RestoreResidual(_) => unreachable!("nothing is refused here"),
                    Step::Clear(_) => journal.clear_through(&mut written),
                };
                if result.is_err() {
                    journal = Journal::open(dir.path()).unwrap();
                }
            }
            assert!(writes >= crash_after.min(9), "{writes}");
            // Nothing is ready before the journal is.
            assert_eq!(
                trained,
                if [2, 3].contains(&crash_after) { 2 } else { 1 },
                "{crash_after}"
            );
            assert_eq!(sent.len(), if crash_after == 5 { 2 } else { 1 });
            assert!(sent.iter().all(|s| *s == (Hex32([9; 32]), b"update".to_vec())));
            assert_eq!(std::fs::read(&ledger).unwrap(), b"new");
            // A crash right after the journal leaves the files; the next task writes over them.
            assert_eq!(dir.path().join("outgoing.update").exists(), crash_after == 7);
            assert!(!staged_file(dir.path()).exists());
        }
    }

    #[test]
    fn a_torn_journal_should_not_stop_the_miner() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("journal.json"), "{ \"state\": \"rea").unwrap();
        assert_eq!(Journal::open(dir.path()).unwrap().state(), &State::Idle);
    }
}
