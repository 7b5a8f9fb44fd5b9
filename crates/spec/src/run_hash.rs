//! The hash of a run specification's meaning.
//!
//! SCALE of the parsed fields, in the order of the functions below, floats by their bits. A field that came later is
//! appended under its own name and only where it is not its default, so that the hashes of older runs stay.

use crate::{DataSpec, InnerSpec, ModelSpec, OuterSpec, RoundSpec, RunSpec, ScoreSpec, UpdateSpec};
use alice_primitives::{Hash, tagged_hash, tags};
use codec::Encode;

impl RunSpec {
    /// Hash of the specification's meaning. Two files that differ only in comments or layout have the same hash.
    ///
    /// ```
    /// use alice_spec::{RunSpec, preset};
    /// let text = preset("dev").ok_or("no such preset")?;
    /// let spec = RunSpec::parse(text)?;
    /// assert_eq!(RunSpec::parse(&format!("# a comment\n{text}"))?.run_hash(), spec.run_hash());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn run_hash(&self) -> Hash {
        // The order is the format: a field moved here changes the hash of every run.
        let mut bytes = (&self.name, self.version).encode();
        encode_model(&self.model, &mut bytes);
        encode_data(&self.data, &mut bytes);
        self.task.fragments.encode_to(&mut bytes);
        encode_inner(&self.inner, &mut bytes);
        encode_update(&self.update, &mut bytes);
        encode_outer(&self.outer, &mut bytes);
        encode_score(&self.score, &mut bytes);
        encode_round(&self.round, &mut bytes);
        self.encode_later_fields(&mut bytes);
        tagged_hash(tags::RUN, &[&bytes])
    }

    /// Fields that are younger than the format.
    fn encode_later_fields(&self, bytes: &mut Vec<u8>) {
        if let Some(moe) = &self.model.moe {
            ("moe", moe.experts, moe.top_k, moe.router_aux_loss.to_bits()).encode_to(bytes);
        }
        if let Some(root) = self.start_root() {
            ("start", root).encode_to(bytes);
        }
        // 1 is what the mean was before the field existed.
        if self.outer.entry_weight != 1 {
            ("entry_weight", self.outer.entry_weight).encode_to(bytes);
        }
    }
}

fn encode_model(model: &ModelSpec, bytes: &mut Vec<u8>) {
    model.architecture.encode_to(bytes);
    [
        model.vocab,
        model.hidden,
        model.layers,
        model.heads,
        model.kv_heads,
        model.ffn,
        model.context,
        model.rope_theta,
        model.init_std_millionths,
    ]
    .encode_to(bytes);
}

fn encode_data(data: &DataSpec, bytes: &mut Vec<u8>) {
    // As text, so the same root in capital digits is another run.
    (&data.tokenizer, &data.corpus_root, &data.reserve_root).encode_to(bytes);
    (data.corpus_tokens, data.reserve_tokens, data.reserve_reuse).encode_to(bytes);
}

fn encode_inner(inner: &InnerSpec, bytes: &mut Vec<u8>) {
    // Integers before floats: the order of the first version, not that of the table.
    [inner.steps, inner.batch_sequences, inner.warmup_steps].encode_to(bytes);
    [
        inner.learning_rate,
        inner.beta1,
        inner.beta2,
        inner.epsilon,
        inner.weight_decay,
        inner.clip_norm,
    ]
    .map(f64::to_bits)
    .encode_to(bytes);
}

fn encode_update(update: &UpdateSpec, bytes: &mut Vec<u8>) {
    (update.chunk, update.budget_bytes, update.value_bits, update.k_max).encode_to(bytes);
    (update.feedback_decay.to_bits(), update.publish_bits).encode_to(bytes);
}

fn encode_outer(outer: &OuterSpec, bytes: &mut Vec<u8>) {
    (outer.alpha.to_bits(), outer.snapshot_every).encode_to(bytes);
}

fn encode_score(score: &ScoreSpec, bytes: &mut Vec<u8>) {
    (score.sequences, score.guard_sequences).encode_to(bytes);
    (score.probe.to_bits(), score.z.to_bits(), score.pool_epochs).encode_to(bytes);
}

fn encode_round(round: &RoundSpec, bytes: &mut Vec<u8>) {
    [
        round.epoch_blocks,
        round.deadline_block,
        round.seed_blocks,
        round.open_margin_blocks,
        round.lease_blocks,
        round.base_lag,
        round.tasks_max,
    ]
    .encode_to(bytes);
}

#[cfg(test)]
mod tests {
    use crate::{RunSpec, StartSpec, preset};

    #[test]
    fn hashes_should_match_the_golden_values() {
        // Golden: every commitment on the chain names its run by this hash.
        for (name, hash) in [
            (
                "dev",
                "3d86787ce6c8fa68d3708f1221229057a30b2ffdf211289fd4abcf620e252674",
            ),
            (
                "small",
                "e73559cdc64c4cde564a7d4f5768860432ff32d5cd263f7ee93b67679f46b421",
            ),
            (
                "genesis-7b",
                "278830e57fd6ad90c18d73b7edca02631ddc2d9f0b061aa06734be914b05e7cf",
            ),
            (
                "dev-moe",
                "2a082144d332c6b285577350a36eb1b28209f33b84b30c04662a9b3715de922c",
            ),
            (
                "phase2-56b",
                "1b431fe3f0fb02e3fd3b7189e235c83ecf939535dce7552c288f5442c0d361a8",
            ),
            (
                "phase3-112b",
                "d09f03224c687247478ffa86bac1d451de10fd6f1f93f60b0fbe9dd0376dcd33",
            ),
            (
                "phase4-200b",
                "0b7a956ab1ff0628549357fd94696af90a35b7aca9a1d1aefd0f9aa9153c1d77",
            ),
        ] {
            let spec = RunSpec::parse(preset(name).unwrap()).unwrap();
            assert_eq!(hex::encode(spec.run_hash()), hash, "{name}");
        }
        let mut spec = RunSpec::parse(preset("dev").unwrap()).unwrap();
        spec.start = Some(StartSpec {
            model_root: "ab".repeat(32),
        });
        assert_eq!(
            hex::encode(spec.run_hash()),
            "084aa8e33114158658f6a830ecac1d936ca73747bc38ac9dae5ab3cf0c75f889"
        );
    }
}
