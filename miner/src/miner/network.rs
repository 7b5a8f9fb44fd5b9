//! Trust at the start of each poll: the server's network, run and key are those of the data directory, or the chain or
//! the user has confirmed the change.

use super::Miner;
use crate::{MinerError, shutdown::unless_requested, task::pinned_network::PinnedNetwork, task::run::Run};
use alice_api::{PROTOCOL_VERSION, Status};
use serde_json::json;

impl Miner {
    /// Checks the server's status against the pinned network, and pins a confirmed change.
    pub(super) async fn check_network(&mut self, status: &Status) -> Result<(), MinerError> {
        // Before any other field: another version may mean something else by them.
        if status.protocol != PROTOCOL_VERSION {
            return Err(MinerError::Protocol {
                server: status.protocol,
                miner: PROTOCOL_VERSION,
            });
        }
        let dir = self.settings.data_dir.clone();
        let seen = PinnedNetwork {
            genesis_hash: status.genesis_hash,
            run_hash: status.run_hash,
            ps_key: Some(status.ps_key),
        };
        // The usual case, at every poll: no file and no chain is asked.
        if self.network == Some(seen) && self.settings.run.is_none_or(|run| run == seen.run_hash) {
            return Ok(());
        }
        let known = self.network.unwrap_or(PinnedNetwork { ps_key: None, ..seen });
        // In this order: what cannot be confirmed at all first, then run and key, each by the chain if there is one.
        known.check_genesis(&seen, &dir)?;
        self.confirm_run(&known, &seen).await?;
        self.confirm_server(&known, &seen).await?;
        // Pinned only after all three hold; a crash before this asks again.
        seen.store(&dir)?;
        self.network = Some(seen);
        Ok(())
    }

    /// Accepts another run than before if the user or the chain names it: governance decides, not a server alone.
    async fn confirm_run(&mut self, known: &PinnedNetwork, seen: &PinnedNetwork) -> Result<(), MinerError> {
        let (expected, found) = (self.settings.run.unwrap_or(known.run_hash), seen.run_hash);
        if found == expected {
            return Ok(());
        }
        let error = MinerError::OtherRun { expected, found };
        let chain = match self.settings.run {
            // A run that the user names is final; no chain can overrule it.
            Some(_) => None,
            None => unless_requested(&self.shutdown, self.chain.get(&seen.genesis_hash)).await?,
        };
        let Some(chain) = chain else { return Err(error) };
        let parameters = unless_requested(&self.shutdown, chain.parameters()).await?;
        if parameters.run_hash != found.0 {
            return Err(error);
        }
        self.reporter.event(
            "run",
            &format!("the network has moved on to run {found}"),
            json!({ "run_hash": found }),
        );
        Ok(())
    }

    /// Accepts a server's key if the user names it or the chain lists it; without a chain the first key seen is kept. A
    /// receipt is worth no more than the key under it.
    async fn confirm_server(&mut self, known: &PinnedNetwork, seen: &PinnedNetwork) -> Result<(), MinerError> {
        let Some(found) = seen.ps_key.filter(|_| known.ps_key != seen.ps_key) else {
            return Ok(());
        };
        match self.settings.ps_key {
            Some(wanted) if wanted == found => return Ok(()),
            Some(expected) => return Err(MinerError::OtherServer { expected, found }),
            None => {}
        }
        let chain = unless_requested(&self.shutdown, self.chain.get(&seen.genesis_hash)).await?;
        match (chain, known.ps_key) {
            (Some(chain), _) => {
                let servers = unless_requested(&self.shutdown, chain.parameter_servers()).await?;
                match servers.keys.contains(&found.0) {
                    true => Ok(()),
                    false => Err(MinerError::untrue(
                        "key",
                        format!("the chain does not list the server {found}"),
                    )),
                }
            }
            (None, None) => Ok(()),
            (None, Some(expected)) => Err(MinerError::OtherServer { expected, found }),
        }
    }

    /// Opens the server's run, unless it is open already, and plans its tasks.
    pub(super) async fn open_run(&mut self, status: &Status) -> Result<(), MinerError> {
        if self.run.as_ref().is_some_and(|r| r.hash == status.run_hash) {
            return Ok(());
        }
        let dir = Run::dir(&self.settings.data_dir, &status.run_hash);
        // The stored text spares a request and works while the server is busy.
        let text = match Run::stored_spec(&dir, &status.run_hash) {
            Some(_) => None,
            None => Some(unless_requested(&self.shutdown, self.settings.client.run()).await?),
        };
        let run = Run::open(
            &self.settings.data_dir,
            text.as_deref(),
            status.run_hash,
            status.genesis_hash,
            self.settings.residual,
        )?;
        let parameters = run.spec.parameters();
        self.reporter.event(
            "run",
            &format!(
                "run {} ({parameters} parameters, {} tokens a task), server {}",
                run.spec.name,
                run.spec.cost().task_tokens,
                self.settings.client.url()
            ),
            json!({ "run": run.spec.name, "run_hash": run.hash, "parameters": parameters, "genesis_hash": run.genesis }),
        );
        let plan = self.settings.fit.plan(&run.spec, None, self.device);
        // Now, and not after a claim: a lease that cannot be trained would be lost to everybody.
        if plan.chosen().is_none() {
            return Err(MinerError::DoesNotFit(plan.summary()));
        }
        self.reporter
            .event("plan", &format!("plan: {}", plan.summary()), plan.json());
        self.run = Some(run);
        Ok(())
    }
}
