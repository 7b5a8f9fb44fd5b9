//! Whole builds: the result, that interruptions do not change it, and the errors.

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

/// Two columns, `id` and an optional one of strings, in groups of `group` rows.
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
    let learned_from: Vec<String> = TrainingDocuments::open(&list, DOCUMENT_BYTES_MAX, MALFORMED_PERMILLE_MAX)
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

/// The build of a test's child process.
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
        ..LeftOut::default()
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

fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

fn lines(documents: std::ops::Range<u64>) -> String {
    documents
        .map(|i| serde_json::json!({"text": document(i, 300)}).to_string() + "\n")
        .collect()
}

#[test]
fn compressed_files_and_capital_endings_should_be_read_as_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let (plain, packed) = (dir.path().join("plain/in"), dir.path().join("packed/in"));
    for folder in [&plain, &packed] {
        std::fs::create_dir_all(folder).unwrap();
    }
    let write = |folder: &Path, name: &str, bytes: &[u8]| std::fs::write(folder.join(name), bytes).unwrap();
    let [first, second, third] = [lines(0..100), lines(100..200), lines(200..300)];
    write(&plain, "a.jsonl", first.as_bytes());
    write(&packed, "a.jsonl.gz", &gzip(first.as_bytes()));
    write(&plain, "b.jsonl", (second.clone() + &third).as_bytes());
    // Two members and two frames in one file are one file: that is what `cat a.gz b.gz` makes.
    write(
        &packed,
        "b.JSONL.ZST",
        &[zstd(second.as_bytes()), zstd(third.as_bytes())].concat(),
    );
    write(&plain, "c.txt", document(500, 100).as_bytes());
    write(
        &packed,
        "c.TXT.GZ",
        &[gzip(b""), gzip(document(500, 100).as_bytes())].concat(),
    );
    write(&plain, "d.txt", document(501, 100).as_bytes());
    write(&packed, "d.TXT", document(501, 100).as_bytes());
    let outs = [dir.path().join("out-plain"), dir.path().join("out-packed")];
    for (folder, out) in [&plain, &packed].into_iter().zip(&outs) {
        let report = built(&list(vec![source("in", folder)]), out).unwrap();
        assert_eq!((report.documents, report.left_out.unread_files), (302, 0));
    }
    assert!(files(&outs[0]) == files(&outs[1]), "the same bytes in every file");

    // An interrupted build resumes inside a compressed file.
    let stopped = dir.path().join("stopped");
    let list = self::list(vec![source("in", &packed)]);
    let (mut starts, mut resumed) = (0, false);
    let small = BuildOptions {
        checkpoint_bytes: 1,
        ..options(1, 1)
    };
    let many: String = (0..40).map(|_| first.as_str()).collect();
    write(
        &packed,
        "a.jsonl.gz",
        &gzip((many.clone() + &lines(1000..1100)).as_bytes()),
    );
    write(&plain, "a.jsonl", (many + &lines(1000..1100)).as_bytes());
    let expected = dir.path().join("expected");
    built(&self::list(vec![source("in", &plain)]), &expected).unwrap();
    while !stopped.join(CORPUS_FILE).exists() {
        starts += 1;
        assert!(starts < 20, "it does not get on");
        let mut left = 2;
        let result = build(&list, &Tokenizer::bytes(), &stopped, &small, &mut |_| {
            left -= 1;
            if left == 0 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        resumed |= result.is_ok_and(|report| report.resumed);
    }
    assert!(resumed && starts > 1, "{starts} starts");
    assert!(files(&stopped) == files(&expected));
}

#[test]
fn decompression_bomb_should_be_left_out_without_being_held() {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("in");
    std::fs::create_dir(&input).unwrap();
    // 64 MiB of one byte: 64 KiB as gzip, 6 KiB as Zstandard. The longest document has 1 KiB.
    let bomb = vec![b'x'; 64 << 20];
    std::fs::write(input.join("a.txt.gz"), gzip(&bomb)).unwrap();
    std::fs::write(input.join("b.txt.zst"), zstd(&bomb)).unwrap();
    let mut text = bomb;
    text.extend_from_slice(("\n".to_owned() + &lines(0..100)).as_bytes());
    std::fs::write(input.join("c.jsonl.gz"), gzip(&text)).unwrap();
    let short = BuildOptions {
        document_bytes_max: 1024,
        ..options(1, u64::MAX)
    };
    let list = list(vec![source("in", &input)]);
    let report = build(&list, &Tokenizer::bytes(), &dir.path().join("out"), &short, &mut quiet).unwrap();
    assert_eq!((report.documents, report.left_out.too_large), (100, 3));
}

#[test]
fn damaged_compressed_file_should_be_named() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    for (name, bytes) in [
        ("a.jsonl.gz", gzip(lines(0..200).as_bytes())),
        ("a.jsonl.zst", zstd(lines(0..200).as_bytes())),
    ] {
        let path = dir.path().join(name);
        for damaged in [&bytes[..bytes.len() / 2], &bytes[..bytes.len() - 1], b"no such format"] {
            std::fs::write(&path, damaged).unwrap();
            let error = message(&list(vec![source("a", &path)]), &out);
            assert!(error.contains(name) && error.contains("get it again"), "{error}");
            std::fs::remove_dir_all(&out).unwrap();
        }
    }
}

#[cfg(unix)]
#[test]
fn files_that_are_not_read_should_be_named_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("in");
    std::fs::create_dir_all(input.join("sub")).unwrap();
    for i in 0..100 {
        std::fs::write(input.join(format!("sub/{i}.txt")), document(i, 50)).unwrap();
    }
    for name in ["README.md", "e.json", "f.tar", "g.parquet.gz", "noending", ".hidden"] {
        std::fs::write(input.join(name), "x").unwrap();
    }
    std::os::unix::fs::symlink(input.join("nothing"), input.join("broken.txt")).unwrap();
    std::os::unix::fs::symlink(input.join("sub"), input.join("circle")).unwrap();
    let report = built(&list(vec![source("in", &input)]), &dir.path().join("out")).unwrap();
    assert_eq!(
        (report.documents, report.left_out.total()),
        (100, 0),
        "files are no documents"
    );
    let named: Vec<(&str, &str)> = report
        .unread
        .iter()
        .map(|file| (file.path.file_name().unwrap().to_str().unwrap(), file.reason.as_str()))
        .collect();
    let expected = [
        ("broken.txt", "broken link"),
        ("circle", "link to a folder"),
        ("README.md", "ending .md is unknown"),
        ("e.json", "format jsonl"),
        ("f.tar", "decompress it first"),
        ("g.parquet.gz", "compressed Parquet"),
        ("noending", "no ending"),
    ];
    assert_eq!(named.len(), expected.len(), "{named:?}");
    for ((name, reason), (expected_name, words)) in named.iter().zip(expected) {
        assert!(*name == expected_name && reason.contains(words), "{name}: {reason}");
    }
    assert_eq!(report.left_out.unread_files, expected.len() as u64);
    let training = TrainingDocuments::open(&list(vec![source("in", &input)]), DOCUMENT_BYTES_MAX, 10).unwrap();
    assert_eq!(training.unread(), (&report.unread[..], expected.len() as u64));
    let about = report.training.about.unwrap();
    assert_eq!(about.sources[0].left_out.unwrap().unread_files, expected.len() as u64);

    // Files of another format than the source's, and folders that a pattern matches.
    let mut parquet = source("in", &input);
    parquet.format = Some(Format::Jsonl);
    std::fs::write(input.join("lines.jsonl"), lines(0..100)).unwrap();
    let report = built(&list(vec![parquet]), &dir.path().join("out-jsonl")).unwrap();
    assert_eq!((report.documents, report.left_out.unread_files), (100, 107));
    assert_eq!(report.unread.len(), UNREAD_NAMED_MAX, "the others are counted");
    let pattern = |pattern: &str| list(vec![source("in", &input.join(pattern))]);
    for (matching, unread) in [("*b*", 1), ("**/*.txt", 1), ("[ls]*", 1)] {
        let out = dir.path().join("out-pattern");
        match built(&pattern(matching), &out) {
            Ok(report) => assert_eq!(report.left_out.unread_files, unread, "{matching}: {:?}", report.unread),
            Err(error) => assert!(error.to_string().contains("not read: "), "{matching}: {error}"),
        }
        let _ = std::fs::remove_dir_all(&out);
    }
}

#[test]
fn path_that_does_not_exist_should_be_named() {
    let paths = [PathBuf::from("nowhere"), PathBuf::from("*.txt")];
    let missing = SourceList::from_paths(&paths, "CC0-1.0", None, "text");
    for error in [missing.check_paths(), built(&missing, Path::new("out")).map(|_| ())] {
        let error = error.unwrap_err();
        assert!(matches!(error, CorpusError::NoPath { .. }), "{error}");
        assert!(error.to_string().contains("the path does not exist"), "{error}");
    }
}

#[test]
fn a_few_malformed_lines_should_be_left_out_and_many_should_stop_the_build() {
    let dir = tempfile::tempdir().unwrap();
    let (path, out) = (dir.path().join("lines.jsonl"), dir.path().join("out"));
    let list = list(vec![source("lines", &path)]);
    // Python's json module writes float("nan") like this.
    let bad = "{\"text\": \"one\", \"score\": NaN}\n";
    std::fs::write(&path, lines(0..150) + bad + &lines(150..300)).unwrap();
    let report = built(&list, &out).unwrap();
    assert_eq!(
        (report.documents, report.left_out.malformed, report.left_out.total()),
        (300, 1, 1)
    );
    let [first] = &report.first_malformed[..] else {
        panic!("{:?}", report.first_malformed);
    };
    assert!(first.contains("lines.jsonl line 151: "), "{first}");
    let clean = dir.path().join("clean");
    std::fs::write(&path, lines(0..300)).unwrap();
    let roots = |report: &BuildReport| (report.training.root, report.yardstick.root);
    assert_eq!(
        roots(&built(&list, &clean).unwrap()),
        roots(&report),
        "the line leaves no trace"
    );

    let many = dir.path().join("many");
    std::fs::write(&path, lines(0..150) + &bad.repeat(20) + &lines(150..300)).unwrap();
    let error = message(&list, &many);
    assert!(
        error.contains("20 of 320") && error.contains("lines.jsonl line 151: "),
        "{error}"
    );
    assert!(
        TrainingDocuments::open(&list, DOCUMENT_BYTES_MAX, MALFORMED_PERMILLE_MAX)
            .unwrap()
            .any(|text| text.is_err())
    );
    // The same folder, with a higher limit: nothing is done again.
    let lenient = BuildOptions {
        malformed_permille_max: 100,
        ..options(1, u64::MAX)
    };
    let report = build(&list, &Tokenizer::bytes(), &many, &lenient, &mut quiet).unwrap();
    assert_eq!((report.documents, report.left_out.malformed), (300, 20));
    let strict = BuildOptions {
        malformed_permille_max: 0,
        ..options(1, u64::MAX)
    };
    let error = build(
        &list,
        &Tokenizer::bytes(),
        &dir.path().join("strict"),
        &strict,
        &mut quiet,
    )
    .unwrap_err();
    assert!(matches!(error, CorpusError::Malformed { malformed: 1, .. }), "{error}");

    // A wrong key shows before the source's end.
    let mut wrong = list.clone();
    wrong.source[0].text_column = "body".into();
    let error = message(&wrong, &dir.path().join("wrong"));
    assert!(
        error.contains("101 of 101") && error.contains("it has: text"),
        "{error}"
    );
    let sure = TrainingDocuments::open(&wrong, DOCUMENT_BYTES_MAX, MALFORMED_PERMILLE_MAX)
        .unwrap()
        .last()
        .unwrap();
    assert!(sure.unwrap_err().to_string().contains("101 of 101"));
}
