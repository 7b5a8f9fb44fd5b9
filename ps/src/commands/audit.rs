//! `alice-ps audit`: recomputes a run from nothing but what is published.
//!
//! Starts at the first state that follows from block 0 and takes every published step again: updates, factors and α
//! come from the manifests, everything else is computed here. The model roots, the aggregates' bytes, the
//! factors and the payout tree must agree bit by bit. With a chain, the manifests must be those that the quorum signed,
//! and what was paid must be the shares of the schedule. Losses come from libtorch and are not measured again.

use crate::{PsError, initial_state::Start, run_context::Network};
use alice_api::{Client, EpochManifest, EpochSummary, Hex32, Outcome, SubmissionRecord, sign::task_id};
use alice_chain::{Chain, ChainError, EpochStatus};
use alice_primitives::{
    Hash, emission,
    pages::{self, Entry},
};
use alice_score::{FACTOR_MAX, lower_median, reference_norm};
use alice_spec::RunSpec;
use alice_store::Master;
use alice_update::{Entries, Received, aggregate};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;
use tempfile::TempDir;

/// What the audit of one epoch found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EpochAudit {
    /// Epoch.
    pub epoch: u32,
    /// Committed submissions.
    pub submissions: usize,
    /// Accepted ones.
    pub accepted: usize,
    /// Root of the model after the epoch, as recomputed.
    pub model_root: Hex32,
    /// BLAKE3 of the manifest.
    pub manifest_hash: Hex32,
    /// Held-out loss after the epoch as published (not measured again), nano-nats per token.
    pub loss_after_nano_nats: i64,
    /// What the chain says; none without a chain.
    pub chain: Option<String>,
    /// Planck that the chain paid; none without a chain or before the first page.
    pub paid_planck: Option<String>,
}

/// What a run is recomputed from, and where.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// Parameter server.
    pub client: &'a Client,
    /// Node, whose word stands above the server's.
    pub chain: Option<&'a Chain>,
    /// File of the first state, where the run names its root.
    pub start: Option<&'a Path>,
    /// Folder for the weights, which lie in a file of four bytes a parameter; the system's temporary folder if none.
    pub work: Option<&'a Path>,
}

/// What an audit ends with: the model after the last epoch that was checked.
#[derive(Debug)]
pub struct Replayed {
    /// Network and run, as the server names them; with a chain, the chain's genesis.
    pub net: Network,
    /// The weights.
    pub theta: Master,
    /// Where they lie; removed when it is dropped.
    pub work: TempDir,
}

/// Where an audit stands: the model after the epochs that were checked.
struct Auditor<'a> {
    client: &'a Client,
    chain: Option<&'a Chain>,
    net: Network,
    /// None only while it is stepped, and after a step that failed.
    theta: Option<Master>,
    root: Hash,
    /// ν_p of each fragment.
    median_norms: Vec<Option<f32>>,
    /// Epochs after this one are not checked.
    until: u32,
}

/// An accepted update that was fetched and checked.
struct Accepted {
    id: Hash,
    fragment: u32,
    update: Received,
    norm: f32,
    factor: f32,
}

/// The state before the first epoch: it follows from block 0 and the run specification, or is the file
/// [`Source::start`] where the run names its root.
pub async fn first_state(source: Source<'_>) -> Result<Replayed, PsError> {
    let status = source.client.status().await?;
    let text = source.client.run().await?;
    let spec = RunSpec::parse(&text).map_err(|e| PsError::Audit(format!("the run specification is not valid: {e}")))?;
    let genesis = status.genesis_hash.0;
    if let Some(chain) = source.chain {
        same(
            "the genesis hash",
            None,
            &status.genesis_hash,
            &Hex32(chain.genesis_hash()),
        )?;
    }
    same("the run hash", None, &status.run_hash, &Hex32(spec.run_hash()))?;
    let net = Network::new(genesis, text, spec);
    let parent = source.work.map_or_else(std::env::temp_dir, Path::to_path_buf);
    let work = tempfile::Builder::new()
        .prefix("alice-weights-")
        .tempdir_in(&parent)
        .map_err(|e| PsError::file("make a folder for the weights in", &parent, &e))?;
    let theta = tokio::task::block_in_place(|| {
        Start::new(&net, source.start)?.create(&work.path().join("theta.f32"), &mut |_, _| ())
    })?;
    Ok(Replayed { net, theta, work })
}

/// Audits every scored epoch up to `until`, oldest first; `report` is called after each. The first difference ends it
/// with [`PsError::Audit`].
pub async fn audit(
    source: Source<'_>,
    until: u32,
    report: &mut (dyn FnMut(&EpochAudit) + Send),
) -> Result<Replayed, PsError> {
    let Replayed { net, theta, work } = first_state(source).await?;
    let median_norms = vec![None; net.fragments.len()];
    let mut auditor = Auditor {
        client: source.client,
        chain: source.chain,
        net,
        root: theta.root(),
        theta: Some(theta),
        median_norms,
        until,
    };
    for summary in auditor.summaries().await? {
        report(&auditor.epoch(&summary).await?);
    }
    Ok(Replayed {
        theta: auditor.theta.ok_or_else(weights_gone)?,
        net: auditor.net,
        work,
    })
}

fn weights_gone() -> PsError {
    PsError::Audit("the recomputed weights are gone after a failed step; start again".into())
}

impl Auditor<'_> {
    /// All scored epochs up to the last that is wanted, oldest first.
    async fn summaries(&self) -> Result<Vec<EpochSummary>, PsError> {
        let mut all = Vec::new();
        let mut before = self.until.checked_add(1);
        loop {
            let page = self.client.epochs_before(before).await?;
            let Some(oldest) = page.iter().map(|s| s.epoch).min() else {
                break;
            };
            // A server that repeats itself would keep us here for ever.
            if before.is_some_and(|before| oldest >= before) {
                return Err(PsError::Audit(format!("the list of epochs repeats epoch {oldest}")));
            }
            all.extend(page);
            before = Some(oldest);
        }
        all.sort_by_key(|s| s.epoch);
        Ok(all)
    }

    async fn epoch(&mut self, summary: &EpochSummary) -> Result<EpochAudit, PsError> {
        let epoch = summary.epoch;
        let at = Some(epoch);
        let bytes = self.client.manifest_bytes(epoch).await?;
        let manifest_hash = *blake3::hash(&bytes).as_bytes();
        same("the manifest's hash", at, &summary.manifest_hash, &Hex32(manifest_hash))?;
        let manifest: EpochManifest = serde_json::from_slice(&bytes)
            .map_err(|e| PsError::Audit(format!("epoch {epoch}: the manifest cannot be read: {e}")))?;
        same("the manifest's epoch", at, &manifest.epoch, &epoch)?;
        same("the manifest's run", at, &manifest.run_hash, &Hex32(self.net.run_hash))?;
        same(
            "the manifest's network",
            at,
            &manifest.genesis_hash,
            &Hex32(self.net.genesis),
        )?;
        same("the model before", at, &manifest.base_root, &Hex32(self.root))?;

        let accepted = self.accepted(&manifest).await?;
        self.step(&manifest, &accepted).await?;
        same("the model after", at, &manifest.model_root, &Hex32(self.root))?;
        same(
            "the model root of the summary",
            at,
            &summary.model_root,
            &Hex32(self.root),
        )?;
        let contributions_root = check_entries(&manifest)?;
        let (chain, paid_planck) = self.check_chain(&manifest, manifest_hash, contributions_root).await?;
        Ok(EpochAudit {
            epoch,
            submissions: manifest.submissions.len(),
            accepted: accepted.len(),
            model_root: Hex32(self.root),
            manifest_hash: Hex32(manifest_hash),
            loss_after_nano_nats: manifest.loss_after_nano_nats,
            chain,
            paid_planck,
        })
    }

    /// Fetches the accepted updates and checks each one's norm and factor (docs/spec/scoring.md#common-norm).
    async fn accepted(&mut self, manifest: &EpochManifest) -> Result<Vec<Accepted>, PsError> {
        let at = Some(manifest.epoch);
        if !manifest.submissions.is_sorted_by(|a, b| a.receipt.id < b.receipt.id) {
            return Err(PsError::Audit(format!(
                "epoch {}: the submissions are not in ascending order",
                manifest.epoch
            )));
        }
        let fragments = self.fragments(manifest)?;
        let measured = |s: &&SubmissionRecord| matches!(s.verdict.outcome, Outcome::Accepted | Outcome::NoImprovement);
        let references: Vec<f32> = (0u32..)
            .zip(&self.median_norms)
            .map(|(p, previous)| {
                let own = manifest.submissions.iter().filter(measured);
                let norms: Vec<f64> = own
                    .filter(|s| fragments.get(&s.receipt.task_id) == Some(&p))
                    .map(|s| f32::from_bits(s.verdict.norm_bits).into())
                    .collect();
                reference_norm(*previous, &norms)
            })
            .collect();
        let mut accepted = Vec::new();
        for record in manifest
            .submissions
            .iter()
            .filter(|s| s.verdict.outcome == Outcome::Accepted)
        {
            same(
                "the submission of a verdict",
                at,
                &record.verdict.id,
                &record.receipt.id,
            )?;
            let fragment = *fragments
                .get(&record.receipt.task_id)
                .ok_or_else(|| self.unknown_task(manifest.epoch, record))?;
            let (layout, reference) = self
                .net
                .fragments
                .get(fragment as usize)
                .zip(references.get(fragment as usize))
                .ok_or_else(|| self.unknown_task(manifest.epoch, record))?;
            let budget = self.net.spec.update.budget_bytes;
            let bytes = self.client.blob(&record.receipt.blob, budget).await?;
            let update = Received::check(layout, &self.net.spec.update, bytes).map_err(|e| {
                PsError::Audit(format!(
                    "epoch {}: accepted update {} does not decode: {e}",
                    manifest.epoch, record.receipt.id
                ))
            })?;
            let norm = update.norm() as f32;
            same("an update's norm", at, &record.verdict.norm_bits, &norm.to_bits())?;
            let factor = FACTOR_MAX.min(reference / norm);
            same("an update's factor", at, &record.verdict.factor_bits, &factor.to_bits())?;
            accepted.push(Accepted {
                id: record.receipt.id.0,
                fragment,
                update,
                norm,
                factor,
            });
        }
        for (p, median) in (0u32..).zip(&mut self.median_norms) {
            let own = accepted.iter().filter(|a| a.fragment == p);
            let norms: Vec<f64> = own.map(|a| f64::from(a.norm)).collect();
            *median = lower_median(&norms).map(|norm| norm as f32).or(*median);
        }
        let median_bits: Vec<u32> = self
            .median_norms
            .iter()
            .map(|norm| norm.map_or(0, f32::to_bits))
            .collect();
        same(
            "the median norm",
            at,
            &format!("{:?}", manifest.median_norm_bits),
            &format!("{median_bits:?}"),
        )?;
        Ok(accepted)
    }

    /// The fragment of each task. It follows from epoch and slice: nobody was given a fragment by choice.
    fn fragments(&self, manifest: &EpochManifest) -> Result<BTreeMap<Hex32, u32>, PsError> {
        let (epoch, at) = (manifest.epoch, Some(manifest.epoch));
        let mut fragments = BTreeMap::new();
        for task in &manifest.tasks {
            let id = task_id(&self.net.run_hash, epoch, task.slice);
            same("the identifier of a task", at, &task.task_id, &id)?;
            let fragment = self.net.spec.fragment_of(epoch, task.slice);
            same("the fragment of a task", at, &task.fragment, &fragment)?;
            fragments.insert(id, fragment);
        }
        Ok(fragments)
    }

    fn unknown_task(&self, epoch: u32, record: &SubmissionRecord) -> PsError {
        PsError::Audit(format!(
            "epoch {epoch}: submission {} answers task {}, which the manifest does not list",
            record.receipt.id, record.receipt.task_id
        ))
    }

    /// Steps 1 to 3 and 5 of docs/spec/protocol.md#aggregation-and-model-step: what is published must be what the
    /// accepted updates give.
    async fn step(&mut self, manifest: &EpochManifest, accepted: &[Accepted]) -> Result<(), PsError> {
        let at = Some(manifest.epoch);
        let Some(published) = manifest.aggregate.as_ref() else {
            return same(
                "the number of accepted updates without an aggregate",
                at,
                &0,
                &accepted.len(),
            );
        };
        let ids: Vec<Hash> = accepted.iter().map(|a| a.id).collect();
        let mean = aggregate::Mean {
            fragments: &self.net.fragments,
            updates: accepted.iter().map(|a| (a.fragment, &a.update, a.factor)).collect(),
            entry_weight: self.net.spec.outer.entry_weight,
        };
        let seed = aggregate::rounding_seed(&self.root, &ids);
        let bytes = aggregate::publish(&self.net.layout, self.net.spec.update.publish_bits, &mean, seed);
        same(
            "the aggregate's hash",
            at,
            &published.blob,
            &Hex32(*blake3::hash(&bytes).as_bytes()),
        )?;
        // It can be fetched, too: others join by it.
        self.client.blob(&published.blob, bytes.len() as u64).await?;
        same(
            "the step size of the aggregate",
            at,
            &published.alpha_bits,
            &manifest.alpha_bits,
        )?;
        let alpha = f32::from_bits(manifest.alpha_bits);
        let full = self.net.spec.outer.alpha as f32;
        // Halved at most three times by the guard, or skipped.
        if ![full, full / 2.0, full / 4.0, full / 8.0, 0.0].contains(&alpha) {
            return Err(PsError::Audit(format!(
                "epoch {}: the guard cannot have used the step size {alpha}",
                manifest.epoch
            )));
        }
        if alpha > 0.0 {
            let d = aggregate::Published::check(&self.net.layout, bytes)
                .map_err(|e| PsError::Audit(format!("epoch {}: the aggregate does not decode: {e}", manifest.epoch)))?;
            let theta = self.theta.take().ok_or_else(weights_gone)?;
            let theta = tokio::task::block_in_place(|| theta.step_for_good(&d, alpha))?;
            self.root = theta.root();
            self.theta = Some(theta);
        }
        Ok(())
    }

    /// What the quorum signed and what was paid.
    async fn check_chain(
        &self,
        manifest: &EpochManifest,
        manifest_hash: Hash,
        contributions_root: Hash,
    ) -> Result<(Option<String>, Option<String>), PsError> {
        let Some(chain) = self.chain else {
            return Ok((None, None));
        };
        let (epoch, at) = (manifest.epoch, Some(manifest.epoch));
        let status = match chain.epoch_status(epoch).await {
            Ok(EpochStatus::Open) => "open",
            Ok(EpochStatus::Accepted { .. }) => "accepted",
            Ok(EpochStatus::Final { .. }) => "final",
            Ok(EpochStatus::Settled { .. }) => "settled",
            Ok(EpochStatus::Forfeited) => "forfeited",
            // The chain keeps 720 epochs: of older ones the model and the scores are checked, the signature is not.
            Err(ChainError::Forgotten { .. }) => return Ok((Some("forgotten".into()), None)),
            Err(error) => return Err(error.into()),
        };
        if let Some(commitment) = chain.commitment(epoch).await? {
            same(
                "the signed manifest hash",
                at,
                &Hex32(commitment.manifest_hash),
                &Hex32(manifest_hash),
            )?;
            same(
                "the signed model root",
                at,
                &Hex32(commitment.model_root),
                &Hex32(self.root),
            )?;
            same(
                "the signed payout root",
                at,
                &Hex32(commitment.contributions_root),
                &Hex32(contributions_root),
            )?;
            same(
                "the signed total score",
                at,
                &commitment.total_score.to_string(),
                &manifest.total_score,
            )?;
        }
        let paid = chain.ledger(epoch).await?.map(|ledger| ledger.paid);
        if status == "settled" {
            let total: u128 = manifest.entries.iter().map(|e| u128::from(e.score)).sum();
            let budget = emission::budget(epoch);
            let shares: u128 = manifest
                .entries
                .iter()
                .map(|e| emission::share(budget, e.score, total))
                .sum();
            // Less where an account would have stayed below the existential deposit.
            if paid.is_none_or(|paid| paid > shares) {
                return Err(PsError::Audit(format!(
                    "epoch {epoch}: {paid:?} planck were paid, the shares are {shares}"
                )));
            }
        }
        Ok((Some(status.into()), paid.map(|paid| paid.to_string())))
    }
}

/// The payout entries are the accepted scores by account; returns the root of their pages.
fn check_entries(manifest: &EpochManifest) -> Result<Hash, PsError> {
    let at = Some(manifest.epoch);
    let mut scores = BTreeMap::<Hex32, u64>::new();
    for record in &manifest.submissions {
        if record.verdict.score > 0 {
            if record.verdict.outcome != Outcome::Accepted {
                return Err(PsError::Audit(format!(
                    "epoch {}: submission {} was refused and has a score",
                    manifest.epoch, record.receipt.id
                )));
            }
            let score = scores.entry(record.receipt.payout).or_default();
            *score = score.saturating_add(record.verdict.score);
        }
    }
    let expected: Vec<Entry> = scores
        .iter()
        .map(|(account, score)| Entry {
            account: account.0,
            score: *score,
        })
        .collect();
    let found: Vec<Entry> = manifest
        .entries
        .iter()
        .map(|e| Entry {
            account: e.account.0,
            score: e.score,
        })
        .collect();
    if found != expected {
        return Err(PsError::Audit(format!(
            "epoch {}: the payout entries are not the accepted scores",
            manifest.epoch
        )));
    }
    let total: u128 = expected.iter().map(|e| u128::from(e.score)).sum();
    same("the total score", at, &manifest.total_score, &total.to_string())?;
    let leaves: Vec<Hash> = pages::paginate(&expected)
        .zip(0..)
        .map(|(page, i)| pages::leaf(manifest.epoch, i, page))
        .collect();
    Ok(pages::root(&leaves))
}

/// An error that names what differs, where, and both values.
fn same<T: PartialEq + std::fmt::Display>(
    what: &str,
    epoch: Option<u32>,
    published: &T,
    computed: &T,
) -> Result<(), PsError> {
    if published == computed {
        return Ok(());
    }
    let place = epoch.map(|epoch| format!("epoch {epoch}: ")).unwrap_or_default();
    Err(PsError::Audit(format!(
        "{place}{what} is published as {published}, recomputed as {computed}"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_should_name_place_and_both_values() {
        assert!(same("the root", Some(3), &1, &1).is_ok());
        let error = same("the root", Some(3), &1, &2).unwrap_err().to_string();
        assert!(
            error.contains("epoch 3: the root is published as 1, recomputed as 2"),
            "{error}"
        );
    }
}
