//! Folders that lie, weights that are broken: each is refused for its own reason, and nothing half-made is left.

use alice_export::*;
use alice_spec::{RunSpec, TensorShape};
use alice_tokenizer::Tokenizer;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

fn spec() -> RunSpec {
    let mut spec = RunSpec::parse(include_str!("../../../chain-spec/runs/dev.toml")).unwrap();
    spec.model.layers = 1;
    spec.model.hidden = 32;
    spec.model.kv_heads = 2;
    spec.model.ffn = 40;
    spec
}

fn theta(spec: &RunSpec) -> Vec<f32> {
    (0..spec.parameters() as u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1u32 << 24) as f32 - 0.5)
        .collect()
}

fn options(dtype: Dtype) -> HfOptions {
    HfOptions {
        dtype,
        shard_bytes: 20_000,
        about: About {
            genesis_hash: Some([1; 32]),
            ..About::new(3)
        },
        model_root: None,
    }
}

fn write(target: &Path, weights: &mut dyn Weights, options: &HfOptions) -> Result<HfExport, ExportError> {
    export_hf(target, &spec(), &Tokenizer::bytes(), weights, options, &mut |_| ())
}

/// A good folder, and what is needed to make it bad.
struct Folder {
    _parent: tempfile::TempDir,
    dir: PathBuf,
}

impl Folder {
    fn new(dtype: Dtype) -> Self {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("model");
        let (spec, theta) = (spec(), theta(&spec()));
        let mut weights = ThetaSlice::new(&spec.tensors(), &theta).unwrap();
        write(&dir, &mut weights, &options(dtype)).unwrap();
        Self { _parent: parent, dir }
    }

    fn alice(&self) -> Value {
        serde_json::from_slice(&std::fs::read(self.dir.join(ALICE_FILE)).unwrap()).unwrap()
    }

    fn set_alice(&self, alice: &Value) {
        std::fs::write(self.dir.join(ALICE_FILE), alice.to_string()).unwrap();
    }

    /// Replaces a file and lists it with its new hash: what somebody would do who wants to deceive.
    fn replace_and_list(&self, name: &str, content: &[u8]) {
        std::fs::write(self.dir.join(name), content).unwrap();
        let mut alice = self.alice();
        alice["files"][name] = json!({"bytes": content.len(), "blake3": blake3::hash(content).to_hex().to_string()});
        self.set_alice(&alice);
    }

    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.dir.join(name)).unwrap()
    }

    fn verify(&self, options: VerifyOptions<'_>) -> Result<VerifyReport, ExportError> {
        verify(&self.dir, options, &mut |_| ())
    }

    fn alone(&self) -> ExportError {
        self.verify(VerifyOptions::default()).unwrap_err()
    }

    fn shard(&self) -> String {
        self.alice()["tensors"][0]["file"].as_str().unwrap().to_owned()
    }
}

#[test]
fn damage_should_be_named_with_its_file() {
    let folder = Folder::new(Dtype::Bf16);
    let shard = folder.shard();
    let good = folder.read(&shard);
    let path = folder.dir.join(&shard);
    std::fs::write(&path, &good[..good.len() - 1]).unwrap();
    let error = folder.alone();
    assert!(matches!(&error, ExportError::FileSize { path: found, .. } if *found == path));
    assert!(error.to_string().ends_with("download it again"), "{error}");
    let mut flipped = good.clone();
    *flipped.last_mut().unwrap() ^= 1;
    std::fs::write(&path, &flipped).unwrap();
    assert!(matches!(folder.alone(), ExportError::FileHash { path: found, .. } if found == path));
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(folder.alone(), ExportError::Missing(found) if found == path));
    std::fs::write(&path, &good).unwrap();
    folder.verify(VerifyOptions::default()).unwrap();
    // transformers takes this file before the index.
    let extra = folder.dir.join("model.safetensors");
    std::fs::write(&extra, &good).unwrap();
    assert!(matches!(folder.alone(), ExportError::Unlisted(found) if found == extra));
    std::fs::remove_file(&extra).unwrap();
    std::fs::create_dir(folder.dir.join(".git")).unwrap();
    folder.verify(VerifyOptions::default()).unwrap();
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 9\n";
    for name in [shard.as_str(), "tokenizer.model", "config.json", ALICE_FILE] {
        let good = folder.read(name);
        std::fs::write(folder.dir.join(name), pointer).unwrap();
        let error = folder.alone();
        assert!(
            matches!(&error, ExportError::LfsPointer(found) if *found == folder.dir.join(name)),
            "{error}"
        );
        assert!(
            error.to_string().ends_with("is a Git LFS pointer: run git lfs pull"),
            "{error}"
        );
        std::fs::write(folder.dir.join(name), good).unwrap();
    }
    // A list that was made over pointers: sizes and hashes agree.
    folder.replace_and_list(&shard, pointer);
    assert!(matches!(folder.alone(), ExportError::LfsPointer(_)));
    std::fs::remove_file(folder.dir.join(ALICE_FILE)).unwrap();
    assert!(matches!(folder.alone(), ExportError::NoAliceFile(_)));
}

#[test]
fn folders_of_something_else_should_say_of_what() {
    let folder = Folder::new(Dtype::Bf16);
    let mut other = spec();
    other.name = "other".into();
    let check = |options| folder.verify(options).unwrap_err();
    let error = check(VerifyOptions {
        spec: Some(&other),
        ..Default::default()
    });
    assert!(matches!(error, ExportError::OtherRun { .. }));
    assert!(
        error.to_string().contains("run 'dev'") && error.to_string().contains("'other'"),
        "{error}"
    );
    let error = check(VerifyOptions {
        genesis_hash: Some([2; 32]),
        ..Default::default()
    });
    assert!(matches!(error, ExportError::OtherChain { .. }));
    let error = check(VerifyOptions {
        model_root: Some([2; 32]),
        ..Default::default()
    });
    assert!(matches!(error, ExportError::Root { .. }));
    let cases = [
        ("format", "alice-weights/3", "format 'alice-weights/3' is not known"),
        ("architecture", "mamba", "architecture 'mamba' is not known"),
    ];
    let good = folder.alice();
    for (field, value, words) in cases {
        let mut alice = good.clone();
        alice[field] = value.into();
        // A newer file may have any other fields: its version is what is wrong.
        alice["experts"] = 8.into();
        folder.set_alice(&alice);
        let message = folder.alone().to_string();
        assert!(message.starts_with(words), "{message}");
    }
}

#[test]
fn lists_that_lead_out_of_the_folder_or_nowhere_should_be_refused() {
    let folder = Folder::new(Dtype::Bf16);
    let good = folder.alice();
    for name in ["../secret", "/etc/passwd", "a/b", "..", ".hidden", ""] {
        let mut alice = good.clone();
        alice["files"][name] = json!({"bytes": 0, "blake3": "00".repeat(32)});
        folder.set_alice(&alice);
        let message = folder.alone().to_string();
        assert!(message.contains("no plain file name"), "{name}: {message}");
    }
    let mut alice = good.clone();
    alice["tensors"][0]["file"] = "nowhere.safetensors".into();
    folder.set_alice(&alice);
    assert!(folder.alone().to_string().contains("which is not listed"));
    let mut alice = good.clone();
    alice["tensors"].as_array_mut().unwrap().pop();
    folder.set_alice(&alice);
    assert!(matches!(folder.alone(), ExportError::Root { .. }));
    for text in ["", "{", "[]", "{\"format\": 1}"] {
        std::fs::write(folder.dir.join(ALICE_FILE), text).unwrap();
        assert!(matches!(folder.alone(), ExportError::Malformed { .. }), "{text}");
    }
    std::fs::write(folder.dir.join(ALICE_FILE), " ".repeat((16 << 20) + 1)).unwrap();
    assert!(folder.alone().to_string().contains("larger than"));
}

#[test]
fn changes_that_are_listed_should_be_found_by_what_they_contradict() {
    let run = spec();
    let with_run = || VerifyOptions {
        spec: Some(&run),
        ..Default::default()
    };
    // A rotary base, a token: nothing in the folder contradicts them, the run does.
    for (name, from, to) in [
        ("config.json", "10000.0", "50000.0"),
        ("tokenizer.json", "\"<0x41>\": 68", "\"<0x41>\": 69"),
        ("model.safetensors.index.json", "model-00001", "model-00002"),
        ("generation_config.json", "0.8", "0.0"),
    ] {
        let folder = Folder::new(Dtype::Bf16);
        let text = String::from_utf8(folder.read(name)).unwrap();
        assert!(text.contains(from), "{name}");
        folder.replace_and_list(name, text.replace(from, to).as_bytes());
        folder.verify(VerifyOptions::default()).unwrap();
        let error = folder.verify(with_run()).unwrap_err();
        assert!(matches!(error, ExportError::NotDerived(_)), "{name}: {error}");
    }
    // A learned tokenizer where the run has bytes.
    let folder = Folder::new(Dtype::Bf16);
    folder.replace_and_list("tokenizer.model", b"no model");
    assert!(
        folder
            .verify(with_run())
            .unwrap_err()
            .to_string()
            .contains("tokenizer.model")
    );
    // Other weights: the shard's own list contradicts them.
    let folder = Folder::new(Dtype::Bf16);
    let shard = folder.shard();
    let mut bytes = folder.read(&shard);
    *bytes.last_mut().unwrap() ^= 1;
    folder.replace_and_list(&shard, &bytes);
    assert!(matches!(folder.alone(), ExportError::TensorHash { .. }));
    // With the tensor's stored hash changed too, only the f32 weights contradict.
    let mut alice = folder.alice();
    let tensors = alice["tensors"].as_array_mut().unwrap();
    let last = tensors.iter_mut().rfind(|t| t["file"] == shard.as_str()).unwrap();
    let shape: Vec<u64> = last["shape"]
        .as_array()
        .unwrap()
        .iter()
        .map(|n| n.as_u64().unwrap())
        .collect();
    let size = shape.iter().product::<u64>() as usize * 2;
    last["stored_blake3"] = blake3::hash(&bytes[bytes.len() - size..]).to_hex().to_string().into();
    folder.set_alice(&alice);
    assert_eq!(folder.verify(with_run()).unwrap().proof, Proof::Listed);
    let theta = theta(&run);
    let mut weights = ThetaSlice::new(&run.tensors(), &theta).unwrap();
    let error = folder.verify(VerifyOptions {
        weights: Some(&mut weights),
        ..with_run()
    });
    assert!(matches!(error, Err(ExportError::TensorHash { what, .. }) if what.contains("rounded")));
    // In an f32 folder the root itself contradicts.
    let folder = Folder::new(Dtype::F32);
    let mut alice = folder.alice();
    alice["tensors"][0]["f32_blake3"] = "11".repeat(32).into();
    folder.set_alice(&alice);
    assert!(matches!(folder.alone(), ExportError::Root { .. }));
}

#[test]
fn headers_that_lie_should_be_refused() {
    let folder = Folder::new(Dtype::Bf16);
    let shard = folder.shard();
    let good = folder.read(&shard);
    let length = u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&good[8..8 + length]).unwrap();
    let data = &good[8 + length..];
    let with = |header: &str| [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat();
    let name = "model.embed_tokens.weight";
    let changed = |change: fn(&mut Value)| {
        let mut header = header.clone();
        change(&mut header["model.embed_tokens.weight"]);
        with(&header.to_string())
    };
    let mut renamed = header.clone();
    let entry = renamed.as_object_mut().unwrap().remove(name).unwrap();
    renamed["other"] = entry;
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (Vec::new(), "no safetensors file"),
        (u64::MAX.to_le_bytes().to_vec(), "header would have"),
        (with("not JSON"), "no JSON"),
        (with(&renamed.to_string()), "not listed"),
        (changed(|t| t["dtype"] = "F32".into()), "is listed"),
        (changed(|t| t["shape"] = json!([1, 2])), "is listed"),
        (changed(|t| t["data_offsets"] = json!([8, 4])), "offsets"),
        (changed(|t| t["data_offsets"] = json!([0, u64::MAX])), "after"),
        (changed(|t| t["data_offsets"] = "x".into()), "embed_tokens"),
        ([&good[..], b"more"].concat(), "bytes of tensors"),
    ];
    for (bytes, words) in cases {
        folder.replace_and_list(&shard, &bytes);
        let message = folder.alone().to_string();
        assert!(message.contains(words), "{words}: {message}");
    }
    folder.replace_and_list(&shard, &good);
    folder.verify(VerifyOptions::default()).unwrap();
}

#[test]
fn broken_weights_should_leave_nothing() {
    let parent = tempfile::tempdir().unwrap();
    let target = parent.path().join("model");
    let (spec, good) = (spec(), theta(&spec()));
    let tensors = spec.tensors();
    let last = |values: &mut Vec<f32>, v| *values.last_mut().unwrap() = v;
    for value in [f32::NAN, f32::INFINITY] {
        let mut theta = good.clone();
        last(&mut theta, value);
        let mut weights = ThetaSlice::new(&tensors, &theta).unwrap();
        let error = write(&target, &mut weights, &options(Dtype::Bf16)).unwrap_err();
        assert!(
            matches!(&error, ExportError::NotFinite { tensor, .. } if tensor == "lm_head.weight"),
            "{error}"
        );
    }
    for change in [-1i64, 1] {
        let size = move |_: usize, t: &TensorShape| Ok(vec![0.5; (t.len() as i64 + change) as usize]);
        let error = write(&target, &mut TensorFn(size), &options(Dtype::Bf16)).unwrap_err();
        assert!(matches!(error, ExportError::TensorSize { .. }), "{error}");
    }
    let mut weights = ThetaSlice::new(&tensors, &good).unwrap();
    let expected = HfOptions {
        model_root: Some([9; 32]),
        ..options(Dtype::Bf16)
    };
    assert!(matches!(
        write(&target, &mut weights, &expected),
        Err(ExportError::Root { .. })
    ));
    let mut bad = options(Dtype::Bf16);
    bad.about.license = "a\nb: c".into();
    assert!(matches!(
        write(&target, &mut weights, &bad),
        Err(ExportError::Option { .. })
    ));
    assert_eq!(
        std::fs::read_dir(parent.path()).unwrap().count(),
        0,
        "something is left"
    );

    let file = parent.path().join("theta.f32");
    std::fs::write(&file, vec![0; 100]).unwrap();
    assert!(matches!(
        ThetaFile::open(&tensors, &file),
        Err(ExportError::WeightsSize { found: 100, .. })
    ));
    assert!(ThetaSlice::new(&tensors, &good[1..]).is_err());
    let mut other = spec.clone();
    other.model.architecture = "gpt".into();
    let error = export_hf(&target, &other, &Tokenizer::bytes(), &mut weights, &bad, &mut |_| ());
    assert!(matches!(error, Err(ExportError::Unknown { .. })));
    other = spec.clone();
    other.model.vocab = 300;
    let error = export_hf(&target, &other, &Tokenizer::bytes(), &mut weights, &bad, &mut |_| ());
    assert!(matches!(error, Err(ExportError::Tokenizer { .. })));
}

/// Weights in blocks of a size that divides nothing.
struct Odd<'a>(ThetaSlice<'a>, usize);

impl Weights for Odd<'_> {
    fn read(
        &mut self,
        number: usize,
        tensor: &TensorShape,
        each: &mut dyn FnMut(&[f32]) -> Result<(), ExportError>,
    ) -> Result<(), ExportError> {
        let size = self.1;
        self.0.read(number, tensor, &mut |values| {
            values.chunks(size).try_for_each(&mut *each)
        })
    }
}

/// The start of the BLAKE3, with the run's hash blotted out: a change of the preset must not look like one of the
/// format.
fn without_run_hash(bytes: &[u8]) -> String {
    let hash = hex::encode(spec().run_hash()).into_bytes();
    let mut bytes = bytes.to_vec();
    let places: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(&hash)).collect();
    for at in places {
        bytes[at..at + hash.len()].fill(b'0');
    }
    blake3::hash(&bytes).to_hex()[..16].to_owned()
}

/// All files but `ALICE.json`, which lists their hashes, run hash included.
fn folder_digest(dir: &Path) -> String {
    let mut names: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    names.sort();
    let mut all = Vec::new();
    for name in names.iter().filter(|name| *name != ALICE_FILE) {
        all.extend_from_slice(name.as_encoded_bytes());
        all.extend(std::fs::read(dir.join(name)).unwrap());
    }
    without_run_hash(&all)
}

#[test]
fn bytes_should_be_the_golden_ones_however_weights_are_cut() {
    // Golden: published hashes of old exports must stay what a new export gives.
    let parent = tempfile::tempdir().unwrap();
    let (spec, theta) = (spec(), theta(&spec()));
    let tensors = spec.tensors();
    let model_root = alice_store::model_root(&tensors, &theta);
    let file = parent.path().join("theta.f32");
    std::fs::write(&file, theta.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>()).unwrap();
    let slice = || ThetaSlice::new(&tensors, &theta).unwrap();
    let mut sources: Vec<Box<dyn Weights + '_>> = vec![Box::new(slice())];
    sources.push(Box::new(ThetaFile::open(&tensors, &file).unwrap()));
    sources.extend([1, 7, 33, 1000].map(|size| Box::new(Odd(slice(), size)) as Box<dyn Weights + '_>));
    for (number, weights) in sources.iter_mut().enumerate() {
        let mut found = Vec::new();
        for dtype in [Dtype::Bf16, Dtype::F32] {
            let target = parent.path().join(format!("{number}-{dtype:?}"));
            write(&target, weights.as_mut(), &options(dtype)).unwrap();
            found.push(folder_digest(&target));
        }
        for kind in [GgufType::F32, GgufType::Bf16, GgufType::Q8_0] {
            let target = parent.path().join(format!("{number}-{kind:?}.gguf"));
            let options = GgufOptions {
                kind,
                about: About::new(3),
                model_root,
            };
            let tokenizer = Tokenizer::bytes();
            export_gguf(&target, &spec, &tokenizer, weights.as_mut(), &options, &mut |_| ()).unwrap();
            found.push(without_run_hash(&std::fs::read(&target).unwrap()));
        }
        assert_eq!(found, GOLDEN, "source {number}");
    }
}

const GOLDEN: [&str; 5] = [
    "835a5f5261bb2062",
    "3b0c450c10b8c2e5",
    "334f9ec9f6b152d6",
    "5e760ce9d969b533",
    "bbcfa57eddcbf9f8",
];

/// A hundred thousand damaged copies of `good`: bits turned, bytes replaced, parts cut out, doubled or moved. The
/// targets in `fuzz/` do the same with a fuzzer's patience.
fn damaged(good: &[u8], mut each: impl FnMut(&[u8])) {
    let mut state = 1u64;
    let mut random = move |below: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below.max(1)
    };
    for _ in 0..100_000 {
        let mut bytes = good.to_vec();
        for _ in 0..=random(3) {
            let at = random(bytes.len());
            let end = at + random(bytes.len() - at).min(40);
            match random(5) {
                0 => bytes[at] ^= 1 << random(8),
                1 => bytes[at] = b"0129-{}[]\",:ae\0\xff"[random(16)],
                2 => drop(bytes.drain(at..end)),
                3 => bytes.truncate(at.max(1)),
                _ => {
                    let part = bytes[at..end].to_vec();
                    let to = random(bytes.len());
                    bytes.splice(to..to, part);
                }
            }
            if bytes.is_empty() {
                bytes.push(0);
            }
        }
        each(&bytes);
    }
}

#[test]
fn damaged_lists_should_be_refused_or_be_lists() {
    let folder = Folder::new(Dtype::F32);
    let good = std::fs::read(folder.dir.join(ALICE_FILE)).unwrap();
    let (mut refused, mut read) = (0, 0);
    damaged(&good, |bytes| match AliceFile::parse(bytes, Path::new(ALICE_FILE)) {
        Err(_) => refused += 1,
        Ok(alice) => {
            alice.listed_root();
            let again = serde_json::to_vec(&alice).unwrap();
            assert_eq!(AliceFile::parse(&again, Path::new(ALICE_FILE)).unwrap(), alice);
            read += 1;
        }
    });
    assert!(refused > 50_000 && read > 100, "{refused} refused, {read} read");
}

#[test]
fn damaged_headers_should_be_refused_or_fill_their_file() {
    let folder = Folder::new(Dtype::F32);
    let shard = std::fs::read_dir(&folder.dir)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let shard = shard
        .filter(|path| path.extension().is_some_and(|e| e == "safetensors"))
        .min()
        .unwrap();
    let whole = std::fs::read(shard).unwrap();
    // The header and a little data, so that damage falls where it is read.
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let data = whole.len() - header;
    let (mut refused, mut read) = (0, 0);
    damaged(&whole[..header], |bytes| {
        let file = [bytes, &whole[header..]].concat();
        match safetensors_layout(&file, Path::new("x")) {
            Err(_) => refused += 1,
            Ok(tensors) => {
                let json = u64::from_le_bytes(file[..8].try_into().unwrap());
                let mut at = 0;
                for tensor in &tensors {
                    assert_eq!(tensor.data.start, at);
                    at = tensor.data.end;
                }
                assert_eq!(at + 8 + json, file.len() as u64);
                read += 1;
            }
        }
    });
    assert!(
        refused > 50_000 && read > 100,
        "{refused} refused, {read} read, {data} bytes of data"
    );
}
