//! A run recomputed from nothing but what is published.
//!
//! Starts at the first state that follows from block 0 and makes every published step again: updates, factors and α
//! come from the manifests, everything else is computed here. The model roots, the aggregates' bytes, the factors and
//! the payout tree must agree bit by bit. With a chain, the manifests must be those that the quorum signed, and what
//! was paid must be the shares of the schedule. Losses come from libtorch and are not measured again.

use crate::{AuditError, Finding, RunContext, first_state::FirstState};
use alice_api::{Client, EpochManifest, EpochSummary, Hex32, Outcome, SubmissionRecord, sign::task_id};
use alice_chain::{Chain, ChainError, EpochStatus};
use alice_primitives::{
    Hash, emission,
    pages::{self, Entry},
};
use alice_score::{FACTOR_MAX, lower_median, reference_norm};
use alice_spec::RunSpec;
use alice_store::Master;
use alice_update::{
    EncodedUpdate, Entries,
    aggregate::{AcceptedUpdate, AggregateRules, aggregate_round},
};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;
use tempfile::TempDir;

/// Result of the audit of one epoch.
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
    /// Status of the epoch on the chain; `None` without a chain.
    pub chain: Option<String>,
    /// Planck that the chain paid; `None` without a chain or before the first page.
    pub paid_planck: Option<String>,
}

/// Sources that a run is recomputed from, and the place for its weights.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// Parameter server.
    pub client: &'a Client,
    /// Node, which is believed over the server.
    pub chain: Option<&'a Chain>,
    /// File of the first state, for a run that names its root.
    pub start: Option<&'a Path>,
    /// Folder for the weights' file, four bytes a parameter; the system's temporary folder if `None`.
    pub work: Option<&'a Path>,
}

/// The model after the last epoch that was checked.
#[derive(Debug)]
pub struct Replayed {
    /// Network and run, as the server names them; with a chain, the chain's genesis.
    pub context: RunContext,
    /// The weights.
    pub theta: Master,
    /// Folder of the weights; removed when it is dropped.
    pub work: TempDir,
}

/// State of an audit: the model after the epochs that were checked.
struct Auditor<'a> {
    client: &'a Client,
    chain: Option<&'a Chain>,
    context: RunContext,
    /// `None` while it is stepped, and after a step that failed.
    theta: Option<Master>,
    root: Hash,
    /// ν_p of each fragment (docs/spec/scoring.md#common-norm).
    median_norms: Vec<Option<f32>>,
    /// Last epoch to check.
    until: u32,
}

/// An accepted update, fetched and checked.
struct Accepted {
    id: Hash,
    fragment: u32,
    update: EncodedUpdate,
    norm: f32,
    factor: f32,
}

/// Looks whether the paths of a [`Source`] exist, for callers that would otherwise ask servers first.
///
/// # Errors
/// The file or the folder is not there.
pub fn check_paths(start: Option<&Path>, work: Option<&Path>) -> Result<(), AuditError> {
    for path in [start, work].into_iter().flatten() {
        path.metadata().map_err(|e| AuditError::file("read", path, e))?;
    }
    Ok(())
}

/// The state before the first epoch: it follows from block 0 and the run specification, or is the file
/// [`Source::start`] if the run names its root.
///
/// # Errors
/// The server does not answer, its network or run is not the one that it publishes, or the weights cannot be written.
pub async fn first_state(source: Source<'_>) -> Result<Replayed, AuditError> {
    let status = source.client.status().await?;
    let text = source.client.run().await?;
    let spec = RunSpec::parse(&text).map_err(Finding::Specification)?;
    // Without a chain, the network is the one that the server names: nothing here could contradict it.
    let genesis = status.genesis_hash.0;
    if let Some(chain) = source.chain {
        let ours = Hex32(chain.genesis_hash());
        same("the genesis hash", None, &status.genesis_hash, &ours)?;
    }
    // Miners pin the hash of the status: with another text behind it, they would train another run.
    same("the run hash", None, &status.run_hash, &Hex32(spec.run_hash()))?;
    let context = RunContext::new(genesis, text, spec);
    let parent = source.work.map_or_else(std::env::temp_dir, Path::to_path_buf);
    let work = tempfile::Builder::new()
        .prefix("alice-weights-")
        .tempdir_in(&parent)
        .map_err(|e| AuditError::file("make a folder for the weights in", &parent, e))?;
    // Minutes for a large model. Signals must still be heard meanwhile, so the other tasks leave this thread.
    let theta = tokio::task::block_in_place(|| {
        FirstState::new(&context, source.start)?.create(&work.path().join("theta.f32"), &mut |_, _| ())
    })?;
    Ok(Replayed { context, theta, work })
}

/// Audits every scored epoch up to `until`, oldest first; `report` is called after each.
///
/// # Errors
/// The first difference ends the audit with [`AuditError::Finding`]; everything else keeps the run from being
/// recomputed.
pub async fn audit(
    source: Source<'_>,
    until: u32,
    report: &mut (dyn FnMut(&EpochAudit) + Send),
) -> Result<Replayed, AuditError> {
    let Replayed { context, theta, work } = first_state(source).await?;
    let median_norms = vec![None; context.fragments.len()];
    let mut auditor = Auditor {
        client: source.client,
        chain: source.chain,
        context,
        root: theta.root(),
        theta: Some(theta),
        median_norms,
        until,
    };
    for summary in auditor.summaries().await? {
        report(&auditor.epoch(&summary).await?);
    }
    Ok(Replayed {
        theta: auditor.theta.ok_or(AuditError::WeightsLost)?,
        context: auditor.context,
        work,
    })
}

impl Auditor<'_> {
    /// All scored epochs up to the last that is wanted, oldest first.
    async fn summaries(&self) -> Result<Vec<EpochSummary>, AuditError> {
        let mut all = Vec::new();
        let mut before = self.until.checked_add(1);
        loop {
            let page = self.client.epochs_before(before).await?;
            let Some(oldest) = page.iter().map(|s| s.epoch).min() else {
                break;
            };
            // A server that repeats itself would keep the audit in this loop for ever.
            if before.is_some_and(|before| oldest >= before) {
                return Err(Finding::EpochRepeated { epoch: oldest }.into());
            }
            all.extend(page);
            before = Some(oldest);
        }
        // Pages begin with the newest epoch; steps can only be made from the oldest on.
        all.sort_by_key(|s| s.epoch);
        Ok(all)
    }

    async fn epoch(&mut self, summary: &EpochSummary) -> Result<EpochAudit, AuditError> {
        let epoch = summary.epoch;
        let here = Some(epoch);
        let bytes = self.client.manifest_bytes(epoch).await?;
        // The hash of the bytes and not of what is parsed from them: two texts can parse to the same manifest, and the
        // quorum signed one of them.
        let manifest_hash = *blake3::hash(&bytes).as_bytes();
        same(
            "the manifest's hash",
            here,
            &summary.manifest_hash,
            &Hex32(manifest_hash),
        )?;
        let manifest: EpochManifest =
            serde_json::from_slice(&bytes).map_err(|problem| Finding::Manifest { epoch, problem })?;
        same("the manifest's epoch", here, &manifest.epoch, &epoch)?;
        same(
            "the manifest's run",
            here,
            &manifest.run_hash,
            &Hex32(self.context.run_hash),
        )?;
        let genesis = Hex32(self.context.genesis);
        same("the manifest's network", here, &manifest.genesis_hash, &genesis)?;
        same("the model before", here, &manifest.base_root, &Hex32(self.root))?;

        let accepted = self.accepted(&manifest).await?;
        self.step(&manifest, &accepted).await?;
        let root = Hex32(self.root);
        same("the model after", here, &manifest.model_root, &root)?;
        same("the model root of the summary", here, &summary.model_root, &root)?;
        let contributions_root = check_entries(&manifest)?;
        let (chain, paid_planck) = self.check_chain(&manifest, manifest_hash, contributions_root).await?;
        Ok(EpochAudit {
            epoch,
            submissions: manifest.submissions.len(),
            accepted: accepted.len(),
            model_root: root,
            manifest_hash: Hex32(manifest_hash),
            loss_after_nano_nats: manifest.loss_after_nano_nats,
            chain,
            paid_planck,
        })
    }

    /// Fetches the accepted updates and checks the norm and factor of each (docs/spec/scoring.md#common-norm).
    async fn accepted(&mut self, manifest: &EpochManifest) -> Result<Vec<Accepted>, AuditError> {
        // The order is a part of the aggregate: sums in another order round differently.
        // Strictly ascending, for an update that is listed twice would weigh twice.
        if !manifest.submissions.is_sorted_by(|a, b| a.receipt.id < b.receipt.id) {
            return Err(Finding::Order { epoch: manifest.epoch }.into());
        }
        let fragments = self.fragments(manifest)?;
        let references = self.reference_norms(manifest, &fragments);
        let is_accepted = |s: &&SubmissionRecord| s.verdict.outcome == Outcome::Accepted;
        let mut accepted = Vec::new();
        for record in manifest.submissions.iter().filter(is_accepted) {
            accepted.push(
                self.accepted_update(manifest.epoch, record, &fragments, &references)
                    .await?,
            );
        }
        self.update_median_norms(manifest, &accepted)?;
        Ok(accepted)
    }

    /// The norm that the factors of each fragment refer to. Updates that improved nothing count too: their norm was
    /// measured before their loss.
    fn reference_norms(&self, manifest: &EpochManifest, fragments: &BTreeMap<Hex32, u32>) -> Vec<f32> {
        let measured = |s: &&SubmissionRecord| matches!(s.verdict.outcome, Outcome::Accepted | Outcome::NoImprovement);
        (0u32..)
            .zip(&self.median_norms)
            .map(|(p, previous)| {
                let own = manifest.submissions.iter().filter(measured);
                let norms: Vec<f64> = own
                    .filter(|s| fragments.get(&s.receipt.task_id) == Some(&p))
                    .map(|s| f32::from_bits(s.verdict.norm_bits).into())
                    .collect();
                reference_norm(*previous, &norms)
            })
            .collect()
    }

    async fn accepted_update(
        &self,
        epoch: u32,
        record: &SubmissionRecord,
        fragments: &BTreeMap<Hex32, u32>,
        references: &[f32],
    ) -> Result<Accepted, AuditError> {
        let (here, receipt, verdict) = (Some(epoch), &record.receipt, &record.verdict);
        same("the submission of a verdict", here, &verdict.id, &receipt.id)?;
        let unknown = || Finding::UnknownTask {
            epoch,
            submission: receipt.id,
            task: receipt.task_id,
        };
        let fragment = *fragments.get(&receipt.task_id).ok_or_else(unknown)?;
        let layouts = self.context.fragments.get(fragment as usize);
        let (layout, reference) = layouts.zip(references.get(fragment as usize)).ok_or_else(unknown)?;
        let rules = &self.context.spec.update;
        // No run accepts a larger update, so no more is read, whatever the server sends.
        let bytes = self.client.blob(&receipt.blob, rules.budget_bytes).await?;
        let update = EncodedUpdate::check(layout, rules, bytes).map_err(|problem| Finding::Update {
            epoch,
            submission: receipt.id,
            problem,
        })?;
        // In f64, rounded once, and compared as bits: a rounding elsewhere would be another protocol.
        let norm = update.norm() as f32;
        same("an update's norm", here, &verdict.norm_bits, &norm.to_bits())?;
        let factor = FACTOR_MAX.min(reference / norm);
        same("an update's factor", here, &verdict.factor_bits, &factor.to_bits())?;
        Ok(Accepted {
            id: receipt.id.0,
            fragment,
            update,
            norm,
            factor,
        })
    }

    /// A fragment without accepted updates keeps its median of before.
    fn update_median_norms(&mut self, manifest: &EpochManifest, accepted: &[Accepted]) -> Result<(), AuditError> {
        for (p, median) in (0u32..).zip(&mut self.median_norms) {
            let own = accepted.iter().filter(|a| a.fragment == p);
            let norms: Vec<f64> = own.map(|a| f64::from(a.norm)).collect();
            *median = lower_median(&norms).map(|norm| norm as f32).or(*median);
        }
        let bits: Vec<u32> = self
            .median_norms
            .iter()
            // Zero is free to mean that there is none: an update of norm zero is degenerate and never accepted.
            .map(|norm| norm.map_or(0, f32::to_bits))
            .collect();
        let published = format!("{:?}", manifest.median_norm_bits);
        same(
            "the median norm",
            Some(manifest.epoch),
            &published,
            &format!("{bits:?}"),
        )
    }

    /// The fragment of each task. It follows from epoch and slice, so that nobody chooses the fragment of a miner.
    fn fragments(&self, manifest: &EpochManifest) -> Result<BTreeMap<Hex32, u32>, AuditError> {
        let (epoch, here) = (manifest.epoch, Some(manifest.epoch));
        let mut fragments = BTreeMap::new();
        for task in &manifest.tasks {
            let id = task_id(&self.context.run_hash, epoch, task.slice);
            same("the identifier of a task", here, &task.task_id, &id)?;
            let fragment = self.context.spec.fragment_of(epoch, task.slice);
            same("the fragment of a task", here, &task.fragment, &fragment)?;
            fragments.insert(id, fragment);
        }
        Ok(fragments)
    }

    /// Steps 1 to 3 and 5 of docs/spec/protocol.md#aggregation-and-model-step: what is published must be what the
    /// accepted updates give.
    async fn step(&mut self, manifest: &EpochManifest, accepted: &[Accepted]) -> Result<(), AuditError> {
        let (epoch, here) = (manifest.epoch, Some(manifest.epoch));
        let Some(published) = manifest.aggregate.as_ref() else {
            return same(
                "the number of accepted updates without an aggregate",
                here,
                &0,
                &accepted.len(),
            );
        };
        let rules = AggregateRules {
            layout: &self.context.layout,
            fragments: &self.context.fragments,
            entry_weight: self.context.spec.outer.entry_weight,
            publish_bits: self.context.spec.update.publish_bits,
        };
        let accepted: Vec<AcceptedUpdate<'_, EncodedUpdate>> = accepted
            .iter()
            .map(|a| AcceptedUpdate {
                id: a.id,
                fragment: a.fragment,
                update: &a.update,
                factor: a.factor,
            })
            .collect();
        let d =
            aggregate_round(&rules, &self.root, &accepted).map_err(|problem| Finding::Aggregate { epoch, problem })?;
        let computed = Hex32(*blake3::hash(d.bytes()).as_bytes());
        same("the aggregate's hash", here, &published.blob, &computed)?;
        // Joining miners need the bytes, so they must be there to be fetched and not only be right.
        self.client.blob(&published.blob, d.bytes().len() as u64).await?;
        same(
            "the step size of the aggregate",
            here,
            &published.alpha_bits,
            &manifest.alpha_bits,
        )?;
        let alpha = f32::from_bits(manifest.alpha_bits);
        let full = self.context.spec.outer.alpha as f32;
        // The step guard halves α at most three times, or skips the step.
        // Equality of floats is right here: halving is exact.
        if ![full, full / 2.0, full / 4.0, full / 8.0, 0.0].contains(&alpha) {
            return Err(Finding::StepSize { epoch, alpha }.into());
        }
        if alpha > 0.0 {
            // A step consumes the weights and keeps no way back: an audit that is killed starts again.
            let theta = self.theta.take().ok_or(AuditError::WeightsLost)?;
            let theta = tokio::task::block_in_place(|| theta.step_for_good(&d, alpha))?;
            self.root = theta.root();
            self.theta = Some(theta);
        }
        Ok(())
    }

    /// Compares the manifest with what the quorum signed, and the pay with the schedule. Returns status and pay.
    async fn check_chain(
        &self,
        manifest: &EpochManifest,
        manifest_hash: Hash,
        contributions_root: Hash,
    ) -> Result<(Option<String>, Option<String>), AuditError> {
        let Some(chain) = self.chain else {
            return Ok((None, None));
        };
        let epoch = manifest.epoch;
        // Before the ledger is read: in the other order an epoch that settles between the two would look settled and
        // unpaid.
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
        // An epoch in which nobody earned has no commitment.
        if let Some(signed) = chain.commitment(epoch).await? {
            let here = Some(epoch);
            for (what, signed, computed) in [
                ("the signed manifest hash", signed.manifest_hash, manifest_hash),
                ("the signed model root", signed.model_root, self.root),
                ("the signed payout root", signed.contributions_root, contributions_root),
            ] {
                same(what, here, &Hex32(signed), &Hex32(computed))?;
            }
            let total = signed.total_score.to_string();
            same("the signed total score", here, &total, &manifest.total_score)?;
        }
        // Pay is compared only once all pages are paid: before that, any part of the shares is right.
        let paid = chain.ledger(epoch).await?.map(|ledger| ledger.paid);
        if status == "settled" {
            let shares = shares(manifest);
            // Less if an account would have stayed below the existential deposit.
            if paid.is_none_or(|paid| paid > shares) {
                return Err(Finding::Paid { epoch, paid, shares }.into());
            }
        }
        Ok((Some(status.into()), paid.map(|paid| paid.to_string())))
    }
}

/// Sum of the shares of an epoch's budget, planck.
fn shares(manifest: &EpochManifest) -> u128 {
    let total: u128 = manifest.entries.iter().map(|e| u128::from(e.score)).sum();
    let budget = emission::budget(manifest.epoch);
    let shares = manifest.entries.iter().map(|e| emission::share(budget, e.score, total));
    shares.sum()
}

/// The payout entries must be the accepted scores by account; returns the root of their pages.
fn check_entries(manifest: &EpochManifest) -> Result<Hash, AuditError> {
    let epoch = manifest.epoch;
    if let Some(record) = manifest
        .submissions
        .iter()
        .find(|record| record.verdict.score > 0 && record.verdict.outcome != Outcome::Accepted)
    {
        let submission = record.receipt.id;
        return Err(Finding::RefusedWithScore { epoch, submission }.into());
    }
    let scores = manifest.submissions.iter();
    let expected = pages::payout_entries(scores.map(|record| (record.receipt.payout.0, record.verdict.score)));
    let found: Vec<Entry> = manifest.entries.iter().copied().map(Into::into).collect();
    if found != expected {
        return Err(Finding::Entries { epoch }.into());
    }
    let total: u128 = expected.iter().map(|e| u128::from(e.score)).sum();
    same(
        "the total score",
        Some(epoch),
        &manifest.total_score,
        &total.to_string(),
    )?;
    let leaves: Vec<Hash> = pages::paginate(&expected)
        .zip(0..)
        .map(|(page, i)| pages::leaf(epoch, i, page))
        .collect();
    Ok(pages::root(&leaves))
}

/// A finding that names value, epoch and both values, if they differ.
fn same<T: PartialEq + std::fmt::Display>(
    what: &'static str,
    epoch: Option<u32>,
    published: &T,
    computed: &T,
) -> Result<(), AuditError> {
    if published == computed {
        return Ok(());
    }
    Err(Finding::Differs {
        what,
        epoch,
        published: published.to_string(),
        computed: computed.to_string(),
    }
    .into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_should_name_place_and_both_values() {
        assert!(same("the root", Some(3), &1, &1).is_ok());
        let error = same("the root", Some(3), &1, &2).unwrap_err();
        assert_eq!(error.exit_code(), alice_program::exit::AUDIT);
        assert!(
            error
                .to_string()
                .starts_with("epoch 3: the root is published as 1, recomputed as 2; keep"),
            "{error}"
        );
    }
}
