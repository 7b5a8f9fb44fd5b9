//! Folders and GGUF files as users get them: written, checked, damaged, checked again.

use alice_export::{
    About, Dtype, ExportError, FolderWeights, GgufOptions, GgufType, HfOptions, Proof, ThetaSlice, VerifyOptions,
    Weights, export_gguf, export_hf, verify,
};
use alice_spec::RunSpec;
use alice_tokenizer::Tokenizer;
use std::path::Path;

/// The shapes of run `dev` with few layers, and weights that differ everywhere.
fn model() -> (RunSpec, Vec<f32>) {
    let mut spec = RunSpec::parse(include_str!("../../../chain-spec/runs/dev.toml")).unwrap();
    spec.model.layers = 2;
    spec.model.hidden = 32;
    spec.model.ffn = 64;
    let theta = (0..spec.parameters() as u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1u32 << 24) as f32 - 0.5)
        .collect();
    (spec, theta)
}

fn export(target: &Path, dtype: Dtype) -> Result<alice_export::HfExport, ExportError> {
    let (spec, theta) = model();
    let options = HfOptions {
        dtype,
        // Small, so that there are several shards.
        shard_bytes: 20_000,
        about: About::new(3),
        model_root: None,
    };
    let mut weights = ThetaSlice::new(&spec.tensors(), &theta)?;
    export_hf(target, &spec, &Tokenizer::bytes(), &mut weights, &options, &mut |_| ())
}

#[test]
fn folder_should_be_checked_as_far_as_what_is_known_reaches() {
    let dir = tempfile::tempdir().unwrap();
    let (spec, theta) = model();
    let root = alice_store::model_root(&spec.tensors(), &theta);
    for dtype in [Dtype::Bf16, Dtype::F32] {
        let target = dir.path().join(format!("{dtype:?}"));
        let written = export(&target, dtype).unwrap();
        assert_eq!(written.model_root, root);
        assert!(written.shards > 1);
        let report = verify(&target, VerifyOptions::default(), &mut |_| ()).unwrap();
        assert!(!report.root_from_outside && !report.derived_from_run);
        let expected = if dtype == Dtype::F32 {
            Proof::Root
        } else {
            Proof::Listed
        };
        assert_eq!(report.proof, expected);
        let mut weights = ThetaSlice::new(&spec.tensors(), &theta).unwrap();
        let options = VerifyOptions {
            spec: Some(&spec),
            model_root: Some(root),
            weights: Some(&mut weights),
            ..VerifyOptions::default()
        };
        let report = verify(&target, options, &mut |_| ()).unwrap();
        assert!(report.root_from_outside && report.derived_from_run);
        let expected = if dtype == Dtype::F32 {
            Proof::Root
        } else {
            Proof::Rounding
        };
        assert_eq!(report.proof, expected);

        let other = VerifyOptions {
            model_root: Some([7; 32]),
            ..VerifyOptions::default()
        };
        assert!(verify(&target, other, &mut |_| ()).is_err());
        let mut other_run = spec.clone();
        other_run.inner.learning_rate = 1e-4;
        let other = VerifyOptions {
            spec: Some(&other_run),
            ..VerifyOptions::default()
        };
        assert!(verify(&target, other, &mut |_| ()).is_err());
    }
}

#[test]
fn every_file_that_is_damaged_missing_or_added_should_be_found() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("model");
    export(&target, Dtype::Bf16).unwrap();
    let check = || verify(&target, VerifyOptions::default(), &mut |_| ());
    check().unwrap();
    let files: Vec<_> = std::fs::read_dir(&target).unwrap().map(|e| e.unwrap().path()).collect();
    assert!(files.len() > 8);
    for file in &files {
        let good = std::fs::read(file).unwrap();
        let mut flipped = good.clone();
        let middle = flipped.len() / 2;
        flipped[middle] ^= 1;
        // ALICE.json ends in a line break that says nothing.
        for bad in [&flipped[..], &good[..good.len() - 2], &[]] {
            std::fs::write(file, bad).unwrap();
            assert!(check().is_err(), "{} of {} bytes", file.display(), bad.len());
        }
        std::fs::remove_file(file).unwrap();
        assert!(check().is_err(), "{} missing", file.display());
        std::fs::write(file, &good).unwrap();
    }
    check().unwrap();
    std::fs::write(target.join("extra.bin"), b"x").unwrap();
    assert!(check().is_err());
}

#[test]
fn exports_should_be_the_same_bytes_and_never_replace_anything() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (dir.path().join("a"), dir.path().join("b"));
    assert_eq!(
        export(&first, Dtype::Bf16).unwrap().alice_hash,
        export(&second, Dtype::Bf16).unwrap().alice_hash
    );
    assert!(export(&first, Dtype::Bf16).is_err());

    let (spec, theta) = model();
    let gguf = |name: &str, kind, model_root| {
        let options = GgufOptions {
            kind,
            about: About::new(3),
            model_root,
        };
        let mut weights = ThetaSlice::new(&spec.tensors(), &theta).unwrap();
        let target = dir.path().join(name);
        let tokenizer = Tokenizer::bytes();
        export_gguf(&target, &spec, &tokenizer, &mut weights, &options, &mut |_| ()).map(|export| export.blake3)
    };
    let root = alice_store::model_root(&spec.tensors(), &theta);
    for (i, kind) in [GgufType::F32, GgufType::Bf16, GgufType::Q8_0].into_iter().enumerate() {
        let hash = gguf(&format!("a{i}.gguf"), kind, root).unwrap();
        assert_eq!(hash, gguf(&format!("b{i}.gguf"), kind, root).unwrap());
        assert!(gguf(&format!("a{i}.gguf"), kind, root).is_err());
    }
    // Weights that do not have the root that the file would claim leave no file.
    assert!(gguf("wrong.gguf", GgufType::Bf16, [7; 32]).is_err());
    assert!(!dir.path().join("wrong.gguf").exists());
}

#[test]
fn a_folder_should_give_its_weights_back() {
    let dir = tempfile::tempdir().unwrap();
    let (spec, theta) = model();
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let target = dir.path().join(format!("{dtype:?}"));
        export(&target, dtype).unwrap();
        let alice = verify(&target, VerifyOptions::default(), &mut |_| ()).unwrap().alice;
        let mut weights = FolderWeights::open(&target, &alice).unwrap();
        let mut found = Vec::new();
        for (number, tensor) in spec.tensors().iter().enumerate() {
            let mut each = |values: &[f32]| {
                found.extend_from_slice(values);
                Ok(())
            };
            weights.read(number, tensor, &mut each).unwrap();
        }
        let expected = theta.iter().map(|v| match dtype {
            Dtype::F32 => *v,
            Dtype::Bf16 => f32::from_bits(u32::from(alice_export::float::bf16_bits(*v)) << 16),
        });
        assert!(found.iter().copied().eq(expected), "{dtype:?}");
        let mut unknown = spec.tensors().swap_remove(1);
        unknown.shape = vec![1];
        assert!(matches!(
            weights.read(1, &unknown, &mut |_| Ok(())),
            Err(ExportError::TensorSize { .. })
        ));
        let mut other = alice.clone();
        other.dtype = match dtype {
            Dtype::F32 => Dtype::Bf16,
            Dtype::Bf16 => Dtype::F32,
        };
        assert!(matches!(
            FolderWeights::open(&target, &other),
            Err(ExportError::Malformed { .. })
        ));
    }
}

#[test]
fn experts_should_be_exported_and_checked() {
    let dir = tempfile::tempdir().unwrap();
    let mut spec = RunSpec::parse(include_str!("../../../chain-spec/runs/dev-moe.toml")).unwrap();
    (spec.model.layers, spec.model.hidden, spec.model.ffn) = (2, 32, 64);
    let theta: Vec<f32> = (0..spec.parameters() as u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1u32 << 24) as f32 - 0.5)
        .collect();
    let root = alice_store::model_root(&spec.tensors(), &theta);
    let weights = || ThetaSlice::new(&spec.tensors(), &theta).unwrap();
    let options = HfOptions {
        dtype: Dtype::Bf16,
        shard_bytes: 20_000,
        about: About::new(3),
        model_root: Some(root),
    };
    let (target, tokenizer) = (dir.path().join("hf"), Tokenizer::bytes());
    export_hf(&target, &spec, &tokenizer, &mut weights(), &options, &mut |_| ()).unwrap();
    let config = std::fs::read_to_string(target.join("config.json")).unwrap();
    for key in [
        "MixtralForCausalLM",
        "\"num_local_experts\": 4",
        "\"num_experts_per_tok\": 2",
    ] {
        assert!(config.contains(key), "{key}");
    }
    let card = std::fs::read_to_string(target.join("README.md")).unwrap();
    assert!(
        card.contains("4 experts of width 64 in each block, 2 for each token"),
        "{card}"
    );
    let mut again = weights();
    let checks = VerifyOptions {
        spec: Some(&spec),
        weights: Some(&mut again),
        ..VerifyOptions::default()
    };
    let report = verify(&target, checks, &mut |_| ()).unwrap();
    assert_eq!(
        (report.proof, report.alice.architecture.as_str()),
        (Proof::Rounding, "mixtral")
    );

    // The root is that of the canonical order, although the file has another one.
    let gguf = dir.path().join("a.gguf");
    let options = GgufOptions {
        kind: GgufType::F32,
        about: About::new(3),
        model_root: root,
    };
    export_gguf(&gguf, &spec, &tokenizer, &mut weights(), &options, &mut |_| ()).unwrap();
    let bytes = std::fs::read(&gguf).unwrap();
    let has = |text: &str| bytes.windows(text.len()).any(|w| w == text.as_bytes());
    for name in [
        "llama.expert_count",
        "blk.1.ffn_gate_exps.weight",
        "blk.1.ffn_gate_inp.weight",
    ] {
        assert!(has(name), "{name}");
    }
    assert!(!has("experts.0"));
}
