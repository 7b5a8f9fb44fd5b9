//! What the miner was doing, on disk before it is done, so that `kill -9` at any instant loses no finished work and
//! sends nothing twice under another name.
//!
//! ```text
//! Idle ──claim──▶ Leased ──train, encode──▶ Ready ──declare, upload, commit──▶ receipt stored
//!  ▲                                                                                │
//!  └───────────────────── residual moved into place ◀──────────────────────────────-┘
//! ```
//!
//! In `Ready` three files exist: the encoded update, the ledger of the residual as it will be once the update is committed,
//! and this journal (written last). After the receipt is stored, one rename makes the new residual the valid one. Each
//! restart looks at journal, receipt and residual and takes the one step that is missing ([`next_step`], pure).

use crate::{MinerError, files, task::residual::waiting_file};
use alice_api::{Hex32, Lease};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// An encoded update on its way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outgoing {
    /// Submission: follows from task, miner and bytes, so that the same bytes are always the same submission.
    pub id: Hex32,
    /// Task that it answers.
    pub lease: Lease,
    /// BLAKE3 of the update.
    pub blob: Hex32,
    /// Size of the update, bytes.
    pub bytes: u64,
}

/// What the miner was doing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum State {
    /// Nothing.
    #[default]
    Idle,
    /// Training for this lease; nothing of it is on disk.
    Leased {
        /// The lease.
        lease: Lease,
    },
    /// The update is encoded and stored; it may or may not have reached the server.
    Ready {
        /// The update.
        outgoing: Outgoing,
    },
}

/// What there is besides the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Surroundings {
    /// The run of the journal's lease is the run that is mined now.
    pub same_run: bool,
    /// The residual of after the commit still waits beside the valid one.
    pub residual_waits: bool,
    /// A receipt for the update is stored.
    pub receipt_stored: bool,
    /// A refusal of the update is stored, or that nothing can come of it any more.
    pub refusal_stored: bool,
    /// Block of the server.
    pub block: u32,
}

/// The one step that is missing.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Ask for a task.
    Claim,
    /// Train for this lease.
    Train(Lease),
    /// Declare, upload and commit the stored bytes, or ask for the answer where they are lost.
    Send(Outgoing),
    /// The receipt is stored: make the residual of after the commit the valid one.
    AdoptResidual(Outgoing),
    /// The update was refused: make that residual the valid one with what was sent put back.
    RestoreResidual(Outgoing),
    /// Nothing more to be had from it: remove the files and go to `Idle`.
    Clear(&'static str),
}

/// Whether work for a lease may still begin at this block of the server.
pub fn lasts(lease: &Lease, block: u32) -> bool {
    block < lease.task.deadline_block.min(lease.task.lease_block)
}

/// Decides from what a crash (or nothing at all) left behind.
pub fn next_step(state: &State, around: Surroundings) -> Step {
    match state {
        State::Idle => Step::Claim,
        State::Leased { .. } if !around.same_run => Step::Clear("the task belongs to another run"),
        State::Leased { lease } if lasts(lease, around.block) => Step::Train(lease.clone()),
        State::Leased { .. } => Step::Clear("the task's time is over"),
        State::Ready { outgoing } => match around {
            Surroundings {
                receipt_stored: true,
                residual_waits: true,
                ..
            } => Step::AdoptResidual(outgoing.clone()),
            Surroundings {
                receipt_stored: true, ..
            } => Step::Clear("committed"),
            Surroundings {
                refusal_stored: true,
                residual_waits: true,
                ..
            } => Step::RestoreResidual(outgoing.clone()),
            Surroundings {
                refusal_stored: true, ..
            } => Step::Clear("refused"),
            // Also where the deadline is over, or the bytes are lost: the server may have them, and gives the same receipt
            // again.
            _ => Step::Send(outgoing.clone()),
        },
    }
}

/// Called after every write; an error stops there, as a kill would.
type Hook<'a> = &'a mut dyn FnMut() -> Result<(), MinerError>;

/// Journal and the files that belong to it, in one directory for each run.
#[derive(Debug)]
pub struct Journal {
    dir: PathBuf,
    state: State,
}

impl Journal {
    /// Reads the journal of a run's directory. A damaged journal counts as `Idle`: the work under it is lost, the miner is
    /// not.
    pub fn open(run_dir: &Path) -> Result<Self, MinerError> {
        files::make_dir(run_dir)?;
        let path = run_dir.join("journal.json");
        // What is too long for a journal is a damaged one.
        let bytes = match files::len(&path)? {
            Some(len) if len > files::JSON_BYTES_MAX => Some(Vec::new()),
            _ => files::read_optional(&path, files::JSON_BYTES_MAX)?,
        };
        let state = bytes.map_or(Ok(State::Idle), |bytes| serde_json::from_slice(&bytes));
        let state = state.unwrap_or_else(|error| {
            tracing::warn!(%error, path = %path.display(), "the journal is left out; the task in it is lost");
            State::Idle
        });
        Ok(Self {
            dir: run_dir.to_owned(),
            state,
        })
    }

    /// What the miner was doing.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Where the update on its way is.
    pub fn update_file(&self) -> PathBuf {
        self.dir.join("outgoing.update")
    }

    /// Notes a lease.
    pub fn leased(&mut self, lease: Lease) -> Result<(), MinerError> {
        self.write(State::Leased { lease })
    }

    /// Stores the update and the ledger of after the commit, then notes that they are complete.
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
        files::write_atomic(&waiting_file(&self.dir), ledger)?;
        written()?;
        self.write(State::Ready { outgoing })?;
        written()
    }

    /// The stored update; none where it is gone or damaged. That it could not be read is an error: it may be committed
    /// already, and nothing about it may be forgotten.
    pub fn update(&self, outgoing: &Outgoing) -> Result<Option<Vec<u8>>, MinerError> {
        let path = self.update_file();
        if files::len(&path)? != Some(outgoing.bytes) {
            return Ok(None);
        }
        let bytes = files::read_optional(&path, outgoing.bytes)?;
        Ok(bytes.filter(|b| Hex32(*blake3::hash(b).as_bytes()) == outgoing.blob))
    }

    /// Forgets the work in hand. The journal goes first: files without a journal are overwritten by the next task,
    /// a journal without files would be a damaged update.
    pub fn clear(&mut self) -> Result<(), MinerError> {
        self.clear_through(&mut || Ok(()))
    }

    fn clear_through(&mut self, written: Hook<'_>) -> Result<(), MinerError> {
        self.write(State::Idle)?;
        written()?;
        files::remove(&self.update_file())?;
        written()?;
        files::remove(&waiting_file(&self.dir))?;
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

    const CALM: Surroundings = Surroundings {
        same_run: true,
        residual_waits: true,
        receipt_stored: false,
        refusal_stored: false,
        block: 40,
    };

    #[test]
    fn a_lease_should_be_used_while_it_lasts() {
        let lease = lease(1);
        let state = State::Leased { lease: lease.clone() };
        assert_eq!(next_step(&state, CALM), Step::Train(lease.clone()));
        assert_eq!(
            next_step(&state, Surroundings { block: 47, ..CALM }),
            Step::Train(lease)
        );
        assert!(matches!(
            next_step(&state, Surroundings { block: 48, ..CALM }),
            Step::Clear(_)
        ));
        assert!(matches!(
            next_step(
                &state,
                Surroundings {
                    same_run: false,
                    ..CALM
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
                next_step(&state, Surroundings { block, ..CALM }),
                Step::Send(out.clone())
            );
        }
        // Killed between the receipt and the residual.
        let receipt = Surroundings {
            receipt_stored: true,
            ..CALM
        };
        assert_eq!(next_step(&state, receipt), Step::AdoptResidual(out.clone()));
        // Killed between the residual and the journal: never adopted twice.
        assert!(matches!(
            next_step(
                &state,
                Surroundings {
                    residual_waits: false,
                    ..receipt
                }
            ),
            Step::Clear(_)
        ));
        let refusal = Surroundings {
            refusal_stored: true,
            ..CALM
        };
        assert_eq!(next_step(&state, refusal), Step::RestoreResidual(out));
        assert!(matches!(
            next_step(
                &state,
                Surroundings {
                    residual_waits: false,
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
                let around = Surroundings {
                    residual_waits: waiting_file(dir.path()).exists(),
                    receipt_stored: receipt,
                    ..CALM
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
                let result = match next_step(journal.state(), around) {
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
                    Step::AdoptResidual(_) => {
                        files::rename(&waiting_file(dir.path()), &ledger).and_then(|()| written())
                    }
                    Step::RestoreResidual(_) => unreachable!("nothing is refused here"),
                    Step::Clear(_) => journal.clear_through(&mut written),
                };
                if result.is_err() {
                    journal = Journal::open(dir.path()).unwrap();
                }
            }
            assert!(writes >= crash_after.min(9), "{writes}");
            // Before the journal says so, nothing is ready.
            assert_eq!(
                trained,
                if [2, 3].contains(&crash_after) { 2 } else { 1 },
                "{crash_after}"
            );
            assert_eq!(sent.len(), if crash_after == 5 { 2 } else { 1 });
            assert!(sent.iter().all(|s| *s == (Hex32([9; 32]), b"update".to_vec())));
            assert_eq!(std::fs::read(&ledger).unwrap(), b"new");
            // Where the journal was all that could be cleared, the next task writes over it.
            assert_eq!(dir.path().join("outgoing.update").exists(), crash_after == 7);
            assert!(!waiting_file(dir.path()).exists());
        }
    }

    #[test]
    fn a_torn_journal_should_not_stop_the_miner() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("journal.json"), "{ \"state\": \"rea").unwrap();
        assert_eq!(Journal::open(dir.path()).unwrap().state(), &State::Idle);
    }
}
