//! The public status.

use super::Service;
use crate::PsError;
use alice_api::{Hex32, Status};

impl Service {
    /// The public status, read with the connections of public reads.
    pub async fn status(&self) -> Result<Status, PsError> {
        let (db, view) = (self.state.read_db(), self.view.borrow().clone());
        let step = db.model_step().await?;
        let round = db.newest_round().await?;
        let last = db.epochs(u32::MAX, 1).await?.pop();
        let block = view.best.unwrap_or(0);
        let submissions = match &round {
            Some(round) => db.count_submissions(round.epoch).await?,
            None => 0,
        };
        Ok(Status {
            protocol: alice_api::PROTOCOL_VERSION,
            ps_key: self.state.key().public(),
            genesis_hash: Hex32(self.run().genesis),
            run_hash: Hex32(self.run().run_hash),
            run: self.run().spec.name.clone(),
            block,
            epoch: self.run().epoch(block),
            phase: view.phase,
            round_epoch: round.map(|r| r.epoch),
            deadline_block: round.map(|r| self.run().spec.deadline(r.epoch)),
            model_root: Hex32(step.map_or([0; 32], |s| s.root)),
            model_step: step.map_or(0, |s| s.step),
            held_out_loss: last.map(|s| s.loss_after),
            submissions,
            notice: view.notice,
        })
    }
}
