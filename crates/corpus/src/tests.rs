//! Whole builds: what comes out, the same whatever happens on the way, and what is said when it cannot be.

use crate::*;
use alice_data::{CORPUS_FILE, LeftOut, Manifest, PartName, SplitRule, TokenSource};
use alice_tokenizer::{END, TOKENIZER_MODEL_FILE, Tokenizer, TrainOptions};
use parquet::basic::Compression;
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::{properties::WriterProperties, writer::SerializedFileWriter};
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Two columns, `id` and an optional one of strings, in groups of so many rows.
pub(crate) fn write_parquet(path: &Path, column: &str, rows: &[Option<String>], group: usize) {
    write_compressed(path, column, rows, group, Compression::SNAPPY);
}

/// The same, compressed otherwise.
pub(crate) fn write_compressed(path: &Path, column: &str, rows: &[Option<String>], group: usize, how: Compression) {
    let schema = format!("message m {{ required int64 id; optional binary {column} (UTF8); }}");
    let schema = Arc::new(parquet::schema::parser::parse_message_type(&schema).unwrap());
    let properties = WriterProperties::builder().set_compression(how).build();
    let file = std::fs::File::create(path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, Arc::new(properties)).unwrap();
    for rows in rows.chunks(group) {
        let mut out = writer.next_row_group().unwrap();
        let mut ids = out.next_column().unwrap().unwrap();
        let numbers: Vec<i64> = (0..rows.len() as i64).collect();
        ids.typed::<Int64Type>().write_batch(&numbers, None, None).unwrap();
        ids.close().unwrap();
        let mut texts = out.next_column().unwrap().unwrap();
        let values: Vec<ByteArray> = rows.iter().flatten().map(|text| text.as_str().into()).collect();
        let levels: Vec<i16> = rows.iter().map(|row| row.is_some().into()).collect();
        texts
            .typed::<ByteArrayType>()
            .write_batch(&values, Some(&levels), None)
            .unwrap();
        texts.close().unwrap();
        out.close().unwrap();
    }
    writer.close().unwrap();
}

/// A document of made-up words that follows from its seed.
pub(crate) fn document(seed: u64, bytes: usize) -> String {
    const WORDS: [&str; 12] = [
        "the", "river", "and", "light", "größer", "東京", "people", "train", "a", "model", "together", "now.",
    ];
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut text = format!("document {seed}\n");
    while text.len() < bytes {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        text.push_str(WORDS[(state >> 33) as usize % WORDS.len()]);
        text.push(if state >> 61 == 0 { '\n' } else { ' ' });
    }
    text
}

fn source(name: &str, path: &Path) -> Source {
    Source {
        name: name.into(),
        path: path.to_path_buf(),
        format: None,
        license: "CC0-1.0".into(),
        url: None,
        text_column: "text".into(),
    }
}

fn list(sources: Vec<Source>) -> SourceList {
    SourceList {
        source: sources,
        split: SplitRule {
            reserve_permille: 100,
            yardstick_permille: 100,
            generations: 2,
            retired: 0,
        },
    }
}

fn options(threads: usize, checkpoint_bytes: u64) -> BuildOptions {
    BuildOptions {
        threads: NonZeroUsize::new(threads).unwrap(),
        checkpoint_bytes,
        ..BuildOptions::default()
    }
}

fn learned() -> Tokenizer {
    let texts: Vec<String> = (0..20).map(|i| document(i, 2000)).collect();
    let texts = texts.iter().map(|text| Ok(text.as_bytes()));
    alice_tokenizer::train(texts, &TrainOptions::new(300), &mut |_| ()).unwrap()
}

fn quiet(_: &Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn built(list: &SourceList, out: &Path) -> Result<BuildReport, CorpusError> {
    build(list, &Tokenizer::bytes(), out, &options(2, u64::MAX), &mut quiet)
}

fn message(list: &SourceList, out: &Path) -> String {
    built(list, out).unwrap_err().to_string()
}

/// The documents of a manifest's shards, as text.
fn documents(manifest: &Manifest, dir: &Path, tokenizer: &Tokenizer) -> Vec<String> {
    let source = TokenSource::open(manifest.clone(), dir, 1).unwrap();
    let tokens: Vec<u32> = (0..source.sequences())
        .map(|i| source.sequence(i).unwrap()[0].into())
        .collect();
    let mut documents: Vec<String> = tokens.split(|t| *t == END).map(|ids| tokenizer.decode(ids)).collect();
    assert_eq!(documents.pop().as_deref(), Some(""), "the last token ends a document");
    documents
}

/// Every file below a folder with its bytes.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            let below = files(&path);
            assert!(!below.is_empty(), "{} is left over", path.display());
            found.extend(below);
        } else {
            found.insert(path.strip_prefix(dir).unwrap().into(), std::fs::read(&path).unwrap());
        }
    }
    found
}

/// 400 documents as text, 400 as JSON lines, 400 as Parquet; a hundred of each are those of the one before with other
/// white space.
fn mixed(dir: &Path) -> SourceList {
    let text = |i: u64| document(i, 100 + (i as usize * 37) % 900);
    let texts = dir.join("texts/deeper");
    std::fs::create_dir_all(&texts).unwrap();
    for i in 0..400 {
        std::fs::write(texts.join(format!("{i:04}.txt")), text(i)).unwrap();
    }
    std::fs::write(texts.join("README.md"), "no document").unwrap();
    let lines = (300..700).map(|i| serde_json::json!({"id": i, "text": format!("\n{} ", text(i))}).to_string() + "\n");
    std::fs::write(dir.join("lines.jsonl"), lines.collect::<String>()).unwrap();
    let rows: Vec<_> = (600..1000).map(|i| Some(text(i).replace('\n', "\r\n"))).collect();
    write_parquet(&dir.join("rows.parquet"), "text", &rows, 150);
    list(vec![
        source("texts", &dir.join("texts")),
        source("lines", &dir.join("*.jsonl")),
        source("rows", &dir.join("rows.parquet")),
    ])
}

#[test]
fn every_document_should_be_in_one_part_once() {
    let dir = tempfile::tempdir().unwrap();
    let (list, out, tokenizer) = (mixed(dir.path()), dir.path().join("out"), learned());
    let report = build(&list, &tokenizer, &out, &options(2, u64::MAX), &mut quiet).unwrap();
    assert_eq!((report.documents, report.left_out.duplicate), (1000, 200));
    assert_eq!(report.left_out.total(), 200);

    let mut parts = vec![(PartName::Training, None, CORPUS_FILE.into(), &report.training)];
    parts.push((PartName::Yardstick, None, YARDSTICK_FILE.into(), &report.yardstick));
    for (generation, reserve) in &report.reserves {
        parts.push((PartName::Reserve, Some(*generation), reserve_file(*generation), reserve));
    }
    assert_eq!(reserve_file(1), "reserve-1.json");
    let mut seen = BTreeSet::new();
    for (part, generation, file, manifest) in parts {
        assert_eq!(Manifest::read(&out.join(file)).unwrap(), *manifest);
        let about = manifest.about.as_ref().unwrap();
        assert_eq!((about.part, about.generation), (part, generation));
        assert_eq!((about.tokenizer.as_str(), about.vocab), (&*tokenizer.spec_name(), 300));
        let texts = documents(manifest, &out, &tokenizer);
        assert!(texts.len() > 20, "{part:?} has {} documents", texts.len());
        assert_eq!(about.documents as usize, texts.len());
        assert_eq!(about.bytes as usize, texts.iter().map(String::len).sum::<usize>());
        for text in texts {
            let expected = match part_of(&list.split, &digest(&text)) {
                Part::Training => (PartName::Training, None),
                Part::Yardstick => (PartName::Yardstick, None),
                Part::Reserve(generation) => (PartName::Reserve, Some(generation)),
            };
            assert_eq!((part, generation), expected);
            assert!(seen.insert(digest(&text)), "twice: {text}");
        }
    }
    // A vocabulary is learned from the training text, and from nothing else.
    let learned_from: Vec<String> = TrainingDocuments::open(&list, DOCUMENT_BYTES_MAX)
        .unwrap()
        .map(|text| text.unwrap())
        .collect();
    assert_eq!(learned_from, documents(&report.training, &out, &tokenizer));

    let all: BTreeSet<_> = (0..1000)
        .map(|i| digest(&document(i, 100 + (i as usize * 37) % 900)))
        .collect();
    assert_eq!(seen, all);
    let about = report.training.about.unwrap();
    let duplicates: Vec<u64> = about.sources.iter().map(|s| s.left_out.unwrap().duplicate).collect();
    assert_eq!(duplicates, [0, 100, 100]);
    assert!(report.yardstick.about.unwrap().sources[0].left_out.is_none());
    assert_eq!(
        std::fs::read(out.join(TOKENIZER_MODEL_FILE)).unwrap(),
        tokenizer.model_bytes()
    );
    assert!(!build_folder(&out).exists());
}

#[test]
fn a_stretch_without_anything_new_should_move_the_bar_and_be_checkpointed() {
    let dir = tempfile::tempdir().unwrap();
    let line = |i: u64| serde_json::json!({"text": document(i, 900)}).to_string() + "\n";
    let lines: String = (0..200).chain((0..100).flat_map(|_| 0..200)).map(line).collect();
    let path = dir.path().join("lines.jsonl");
    std::fs::write(&path, &lines).unwrap();
    let list = list(vec![source("lines", &path)]);
    let (out, mut seen) = (dir.path().join("out"), Vec::new());
    let checkpoint = build_folder(&out).join("checkpoint");
    let result = build(&list, &Tokenizer::bytes(), &out, &options(1, 5 << 20), &mut |at| {
        seen.push((at.read_bytes, checkpoint.exists()));
        ControlFlow::Continue(())
    });
    assert_eq!(result.unwrap().documents, 200);
    // All that is new lies in the first hundredth.
    assert!(
        seen.len() >= 4 && seen.windows(2).all(|pair| pair[0].0 <= pair[1].0),
        "{seen:?}"
    );
    assert!(seen.iter().any(|(_, saved)| *saved), "{seen:?}");
}

#[test]
fn a_retired_generation_should_become_training_text_and_more_sources_should_move_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let full = mixed(dir.path());
    let set = |manifest: &Manifest, out: &Path| -> BTreeSet<String> {
        documents(manifest, out, &Tokenizer::bytes()).into_iter().collect()
    };
    let (first, second) = (dir.path().join("1"), dir.path().join("2"));
    let small = SourceList {
        source: full.source[..1].to_vec(),
        ..full.clone()
    };
    let before = built(&small, &first).unwrap();
    // Extended by two sources, and with generation 0 replaced by generation 1.
    let mut retired = full.clone();
    retired.split.retired = 1;
    let after = built(&retired, &second).unwrap();
    assert_eq!(after.reserves.len(), 1);
    assert_eq!(after.reserves[0].0, 1);
    assert!(!second.join(reserve_file(0)).exists());
    let (old0, old1) = (set(&before.reserves[0].1, &first), set(&before.reserves[1].1, &first));
    let (training, reserve) = (set(&after.training, &second), set(&after.reserves[0].1, &second));
    assert!(old0.is_subset(&training) && old1.is_subset(&reserve) && old1.len() < reserve.len());
    assert!(set(&before.training, &first).is_subset(&training));
    assert!(set(&before.yardstick, &first).is_subset(&set(&after.yardstick, &second)));
}

/// 12 MiB in files of all formats: a dozen batches.
fn large(dir: &Path) -> SourceList {
    let texts = dir.join("texts");
    std::fs::create_dir_all(&texts).unwrap();
    for i in 0..40 {
        std::fs::write(texts.join(format!("{i}.txt")), document(i, 100_000)).unwrap();
    }
    let lines = (30..110).map(|i| serde_json::json!({"text": document(i, 50_000)}).to_string() + "\n");
    std::fs::write(dir.join("lines.jsonl"), lines.collect::<String>()).unwrap();
    let rows: Vec<_> = (1000..1800).map(|i| Some(document(i, 5_000))).collect();
    write_parquet(&dir.join("rows.parquet"), "text", &rows, 100);
    list(vec![
        source("texts", &texts),
        source("lines", &dir.join("lines.jsonl")),
        source("rows", &dir.join("rows.parquet")),
    ])
}

#[test]
fn threads_and_stops_should_change_no_byte() {
    let dir = tempfile::tempdir().unwrap();
    let (list, tokenizer) = (large(dir.path()), learned());
    let reference = dir.path().join("reference");
    let mut steps = 0;
    let report = build(&list, &tokenizer, &reference, &options(1, u64::MAX), &mut |at| {
        steps += 1;
        assert!(at.read_bytes <= at.total_bytes && at.documents <= 920);
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(
        (report.documents, report.left_out.duplicate, report.resumed),
        (920, 0, false)
    );
    assert!(steps >= 10 && report.training.shards.len() >= 3, "{steps} batches");
    let expected = files(&reference);

    let many = dir.path().join("many");
    build(&list, &tokenizer, &many, &options(5, 1 << 20), &mut quiet).unwrap();
    assert!(files(&many) == expected, "five threads, many checkpoints");

    // Stopped after 1, 2, 3… batches since the last start, until it is complete.
    let stopped = dir.path().join("stopped");
    let mut starts = 0;
    let resumed = loop {
        starts += 1;
        let (mut left, threads) = (1 + starts / 2, 1 + starts % 3);
        let result = build(&list, &tokenizer, &stopped, &options(threads, 2 << 20), &mut |_| {
            left -= 1;
            if left == 0 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        match result {
            Err(CorpusError::Stopped) => assert!(!stopped.join(CORPUS_FILE).exists()),
            other => break other.unwrap().resumed,
        }
        assert!(starts < 50, "it does not get on");
    };
    assert!(starts > 4 && resumed, "{starts}");
    assert!(files(&stopped) == expected, "stopped {starts} times");
}

const CHILD: &str = "ALICE_CORPUS_TEST_CHILD";

/// The name by which this test binary runs one of these tests.
fn this_test(name: &str) -> String {
    format!("{}::{name}", module_path!().split_once("::").unwrap().1)
}

fn child(name: &str, dir: &Path, shell: &str) -> Command {
    let program = std::env::current_exe().unwrap();
    let line = format!("{shell} exec '{}' --exact {}", program.display(), this_test(name));
    let mut command = Command::new("sh");
    command.args(["-c", &line]).env(CHILD, dir).stdout(Stdio::null());
    command
}

/// What a child of a test builds.
fn build_as_child(dir: &Path) -> Result<BuildReport, CorpusError> {
    let sources = dir.parent().unwrap().join("in");
    let list = list(vec![
        source("texts", &sources.join("texts")),
        source("lines", &sources.join("lines.jsonl")),
        source("rows", &sources.join("rows.parquet")),
    ]);
    build(&list, &learned(), dir, &options(2, 1 << 20), &mut quiet)
}

#[test]
fn a_killed_build_should_be_finished_with_the_same_bytes() {
    if let Ok(dir) = std::env::var(CHILD) {
        build_as_child(Path::new(&dir)).unwrap();
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    large(&dir.path().join("in"));
    build_as_child(&dir.path().join("reference")).unwrap();
    let expected = files(&dir.path().join("reference"));
    let mut resumed = 0;
    for round in 0..20u64 {
        // Five at least; more where a machine was through before it could be killed.
        if round >= 5 && resumed >= 2 {
            break;
        }
        let out = dir.path().join(format!("out-{round}"));
        let mut child = child("a_killed_build_should_be_finished_with_the_same_bytes", &out, "")
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        while !build_folder(&out).join("checkpoint").exists() && child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "no checkpoint for a minute");
            std::thread::sleep(Duration::from_millis(1));
        }
        // How far it comes in the time given is left to chance.
        std::thread::sleep(Duration::from_millis(round % 5 * 20));
        child.kill().unwrap();
        child.wait().unwrap();
        if out.join(CORPUS_FILE).exists() && !build_folder(&out).exists() {
            continue;
        }
        resumed += u32::from(build_as_child(&out).unwrap().resumed);
        assert!(files(&out) == expected, "round {round}");
    }
    assert!(resumed >= 2, "only {resumed} of 20 were killed in the middle");
}

/// A process whose files may not grow beyond a size stands for a full disk.
#[cfg(unix)]
#[test]
fn a_full_disk_should_be_said_and_lose_nothing() {
    const NAME: &str = "a_full_disk_should_be_said_and_lose_nothing";
    if let Ok(dir) = std::env::var(CHILD) {
        let error = build_as_child(Path::new(&dir)).unwrap_err().to_string();
        assert!(error.contains("cannot write") && error.contains("out"), "{error}");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    large(&dir.path().join("in"));
    build_as_child(&dir.path().join("reference")).unwrap();
    let out = dir.path().join("out");
    // A full shard has 2 MiB; in blocks of 512 bytes this is 1.5 MiB.
    let status = child(NAME, &out, "trap '' XFSZ; ulimit -f 3072;").status().unwrap();
    assert!(status.success());
    assert!(!out.join(CORPUS_FILE).exists());
    assert!(build_as_child(&out).unwrap().resumed);
    assert!(files(&out) == files(&dir.path().join("reference")));
}

fn folder(texts: &[(&str, &[u8])]) -> (TempDir, SourceList) {
    let dir = tempfile::tempdir().unwrap();
    let texts_dir = dir.path().join("texts");
    std::fs::create_dir(&texts_dir).unwrap();
    for (name, content) in texts {
        std::fs::write(texts_dir.join(name), content).unwrap();
    }
    let list = list(vec![source("texts", &texts_dir)]);
    (dir, list)
}

#[test]
fn what_is_no_text_should_be_left_out_and_counted() {
    let many: Vec<(String, Vec<u8>)> = (0..80)
        .map(|i| (format!("{i}.txt"), document(i, 50).into_bytes()))
        .collect();
    let mut texts: Vec<(&str, &[u8])> = many.iter().map(|(name, text)| (&**name, &**text)).collect();
    let long = vec![b'x'; 2000];
    texts.extend([
        ("nul.txt", &b"a\0b"[..]),
        ("latin1.txt", b"gr\xf6\xdfer"),
        ("empty.txt", b""),
        ("blank.txt", b"\n \n"),
        ("long.txt", &long),
        ("same.txt", texts[7].1),
    ]);
    let (dir, list) = folder(&texts);
    let out = dir.path().join("out");
    let short = BuildOptions {
        document_bytes_max: 1000,
        ..options(2, u64::MAX)
    };
    let report = build(&list, &Tokenizer::bytes(), &out, &short, &mut quiet).unwrap();
    let expected = LeftOut {
        duplicate: 1,
        empty: 2,
        too_large: 1,
        with_nul: 1,
        not_utf8: 1,
    };
    assert_eq!((report.documents, report.left_out), (80, expected));
    assert_eq!(report.training.about.unwrap().sources[0].left_out, Some(expected));
    assert!(!out.join(TOKENIZER_MODEL_FILE).exists(), "bytes need no file");
}

#[test]
fn a_corpus_that_cannot_be_should_be_explained_and_leave_nothing() {
    let (dir, list) = folder(&[("empty.txt", b""), ("nul.txt", b"\0")]);
    let out = dir.path().join("out");
    assert!(message(&list, &out).contains("2 documents were left out, none remains"));
    std::fs::write(dir.path().join("texts/one.txt"), "one document").unwrap();
    let error = message(&list, &out);
    assert!(
        error.contains("no document of 1 fell to the") && error.contains("raise"),
        "{error}"
    );
    // One that fills a shard, whose name only the state knew.
    std::fs::write(dir.path().join("texts/one.txt"), document(1, 2 << 20)).unwrap();
    let error = message(&list, &out);
    assert!(error.contains("no document of 1 fell to the"), "{error}");
    assert_eq!(files(&out), BTreeMap::new());

    let missing = self::list(vec![source("gone", &dir.path().join("gone"))]);
    let error = message(&missing, &out);
    assert!(
        error.contains("source 'gone'") && error.contains("at ") && error.contains("/gone"),
        "{error}"
    );
    let mut only_parquet = list.clone();
    only_parquet.source[0].format = Some(Format::Parquet);
    assert!(message(&only_parquet, &out).contains("no .parquet file"));
    let mut pattern = list.clone();
    pattern.source[0].path = dir.path().join("[");
    assert!(message(&pattern, &out).contains("path of source 'texts'"));
    std::fs::write(dir.path().join("data.bin"), "x").unwrap();
    let unknown = self::list(vec![source("data", &dir.path().join("data.bin"))]);
    assert!(message(&unknown, &out).contains("say text, jsonl or parquet"));
}

#[test]
fn an_interrupted_build_should_only_go_on_with_the_same_inputs() {
    let dir = tempfile::tempdir().unwrap();
    let (list, tokenizer, out) = (large(dir.path()), learned(), dir.path().join("out"));
    let mut left = 8;
    let stopped = build(&list, &tokenizer, &out, &options(2, 1 << 20), &mut |_| {
        left -= 1;
        if left == 0 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    assert!(matches!(stopped, Err(CorpusError::Stopped)));
    let same =
        |list: &SourceList, tokenizer: &Tokenizer| build(list, tokenizer, &out, &options(2, 1 << 20), &mut quiet);
    let mut other = list.clone();
    other.split.reserve_permille += 1;
    assert!(matches!(same(&other, &tokenizer), Err(CorpusError::OtherBuild { .. })));
    let bytes = same(&list, &Tokenizer::bytes()).unwrap_err();
    assert!(bytes.to_string().contains("to start over"), "{bytes}");

    // Somebody else at work.
    let lock = std::fs::File::open(build_folder(&out).join("lock")).unwrap();
    lock.lock().unwrap();
    assert!(matches!(same(&list, &tokenizer), Err(CorpusError::Locked(_))));
    lock.unlock().unwrap();

    // A file that has changed meanwhile.
    let changed = dir.path().join("texts/3.txt");
    let before = std::fs::read(&changed).unwrap();
    let modified = std::fs::metadata(&changed).unwrap().modified().unwrap();
    std::fs::write(&changed, [&before[..], b"more"].concat()).unwrap();
    assert!(matches!(same(&list, &tokenizer), Err(CorpusError::OtherBuild { .. })));
    std::fs::write(&changed, &before).unwrap();
    let file = std::fs::File::options().write(true).open(&changed).unwrap();
    file.set_modified(modified).unwrap();

    // Damage in the state.
    for name in ["checkpoint", "digests"] {
        let path = build_folder(&out).join(name);
        let good = std::fs::read(&path).unwrap();
        std::fs::write(&path, &good[..8]).unwrap();
        let error = same(&list, &tokenizer).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("to start over"), "{error}");
        std::fs::write(&path, good).unwrap();
    }
    assert!(same(&list, &tokenizer).unwrap().resumed);
    let error = same(&list, &tokenizer).unwrap_err();
    assert!(matches!(error, CorpusError::Exists(_)), "{error}");
}

#[test]
fn a_broken_line_should_stop_the_build_and_name_itself() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lines.jsonl");
    let mut text: String = (0..100)
        .map(|i| serde_json::json!({"text": document(i, 50)}).to_string() + "\n")
        .collect();
    text.push_str("{\"text\": \"cut");
    std::fs::write(&path, &text).unwrap();
    let (list, out) = (list(vec![source("lines", &path)]), dir.path().join("out"));
    let error = message(&list, &out);
    assert!(
        error.contains("lines.jsonl line 101: ") && error.contains("get it again"),
        "{error}"
    );
    assert!(!out.join(CORPUS_FILE).exists());
    std::fs::write(&path, text + "\"}\n").unwrap();
    assert_eq!(built(&list, &out).unwrap().documents, 101);
}
