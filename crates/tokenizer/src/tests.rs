use crate::vocabulary::{Normalizer, SPACE, fixed_pieces};
use crate::*;
use proptest::prelude::*;
use std::collections::HashMap;
use std::sync::OnceLock;

/// Sentences from a small grammar, the same on every machine: words, numbers, runs of spaces and signs, a few scripts.
fn corpus() -> String {
    let words = [
        "the",
        "people",
        "of",
        "union",
        "state",
        "trained",
        "training",
        "trains",
        "network",
        "naïve",
        "café",
        "алиса",
        "модель",
        "日本語",
        "aaaa",
        "aaaaaaaa",
        "------",
        "(and)",
        "don't",
        "1789",
        "x_1",
    ];
    let mut text = String::new();
    let mut draw = 1u64;
    for number in 0..4000u64 {
        draw = draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(number | 1);
        let word = words[(draw >> 33) as usize % words.len()];
        text += word;
        text += match draw >> 59 {
            0 => ".\n",
            1 => "  ",
            2 => ", ",
            3 => "    ",
            _ => " ",
        };
    }
    text
}

fn learn(text: &str, options: &TrainOptions) -> Result<Tokenizer, TokenizerError> {
    train([Ok(text.as_bytes())], options, &mut |_| ())
}

fn sample() -> &'static Tokenizer {
    static SAMPLE: OnceLock<Tokenizer> = OnceLock::new();
    SAMPLE.get_or_init(|| learn(&corpus(), &TrainOptions::new(380)).unwrap())
}

/// SentencePiece's algorithm word by word from its description, on strings: no cutting, no tables, no memory.
fn by_definition(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    let ids: HashMap<&str, u32> = tokenizer.pieces().iter().map(|p| p.text.as_str()).zip(0..).collect();
    let learned = |text: &str| ids.get(text).copied().filter(|id| *id >= FIRST_LEARNED);
    let mut text = text.replace(' ', "\u{2581}");
    if tokenizer.dummy_prefix() && !text.is_empty() {
        text.insert(0, SPACE);
    }
    let mut parts: Vec<String> = text.chars().map(String::from).collect();
    loop {
        let mut best: Option<(f32, usize)> = None;
        for at in 1..parts.len() {
            if let Some(id) = learned(&format!("{}{}", parts[at - 1], parts[at])) {
                let score = tokenizer.pieces()[id as usize].score;
                if best.is_none_or(|(best, _)| score > best) {
                    best = Some((score, at));
                }
            }
        }
        let Some((_, at)) = best else { break };
        let right = parts.remove(at);
        parts[at - 1] += &right;
    }
    let bytes = |part: &String| -> Vec<u32> { part.bytes().map(|b| u32::from(b) + BYTE_FIRST).collect() };
    parts
        .iter()
        .flat_map(|part| learned(part).map_or_else(|| bytes(part), |id| vec![id]))
        .collect()
}

#[test]
fn files_should_match_the_golden_values() {
    // Golden: run specifications will name tokenizers by the hash of their file.
    let hash = |bytes: &[u8]| blake3::hash(bytes).to_hex()[..16].to_owned();
    let t = sample();
    let found = [
        hash(&t.model_bytes()),
        hash(t.tokenizer_json().as_bytes()),
        hash(t.tokenizer_config_json(128).as_bytes()),
        hash(&Tokenizer::bytes().model_bytes()),
        hash(Tokenizer::bytes().tokenizer_json().as_bytes()),
    ];
    assert_eq!(found, GOLDEN);
}

const GOLDEN: [&str; 5] = [
    "1e5ced9cb9ef5b9a",
    "76d055e9c6d28632",
    "ae8cc9ab437e2896",
    "3f9fee7bfa2dfd89",
    "d824f1fbb010e7e2",
];

#[test]
fn first_ids_should_be_special_then_bytes_then_merges() {
    let t = sample();
    let texts: Vec<&str> = t.pieces().iter().map(|p| p.text.as_str()).collect();
    assert_eq!(texts[..5], ["<unk>", "<s>", "</s>", "<0x00>", "<0x01>"]);
    assert_eq!(texts[258], "<0xFF>");
    assert_eq!(t.vocab(), 380);
    // Single characters stand at the end, the most frequent first.
    assert_eq!(texts[texts.len() - 1].chars().count(), 1);
    assert!(texts[259].chars().count() == 2, "{}", texts[259]);
    assert!(texts.contains(&"▁training") || texts.contains(&"▁train"), "{texts:?}");
}

#[test]
fn pieces_should_not_span_classes_and_digits_should_stand_alone() {
    for piece in &sample().pieces()[FIRST_LEARNED as usize..] {
        let text = piece.text.trim_start_matches(SPACE);
        if text.chars().any(|c| c.is_ascii_digit()) {
            assert_eq!(piece.text.chars().count(), 1, "{}", piece.text);
        }
        assert!(!text.contains(SPACE), "{}", piece.text);
        let letters = text.chars().filter(|c| c.is_alphabetic()).count();
        assert!(letters == 0 || letters == text.chars().count(), "{}", piece.text);
        assert!(!piece.text.contains(char::is_control));
    }
}

#[test]
fn runs_should_get_pieces_that_every_encoder_merges_alike() {
    let texts: Vec<&str> = sample().pieces().iter().map(|p| p.text.as_str()).collect();
    assert!(texts.contains(&"aa") && texts.contains(&"aaaa"));
    // aaa = a·aa = aa·a would let two encoders differ.
    assert!(!texts.contains(&"aaa"));
}

#[test]
fn byte_tokenizer_should_have_fixed_ids() {
    let t = Tokenizer::bytes();
    assert_eq!(t.vocab(), 259);
    for text in ["", " a  b\n", "\u{2581} é 🦙 \0"] {
        let expected: Vec<u32> = text.bytes().map(|byte| u32::from(byte) + 3).collect();
        assert_eq!(t.encode(text.as_bytes()), expected);
        assert_eq!(t.decode(&expected), text);
    }
    assert_eq!(t.encode(b"A\n"), [68, 13]);
    assert_eq!(END, 2);
    let all: Vec<u8> = (0..=255).collect();
    assert_eq!(t.decode_bytes(&t.encode(&all)), all);
}

#[test]
fn a_dummy_prefix_should_be_put_and_taken_away() {
    let options = TrainOptions {
        dummy_prefix: true,
        ..TrainOptions::new(380)
    };
    let t = learn(&corpus(), &options).unwrap();
    for text in ["", "the people", " the", "  ", "\nx", "🦙"] {
        let ids = t.encode(text.as_bytes());
        assert_eq!(ids, by_definition(&t, text), "{text:?}");
        assert_eq!(t.decode(&ids), text);
    }
    assert_eq!(t.encode(b"the"), sample_like(&t, "▁the"));
    assert!(t.tokenizer_json().contains("Prepend"));
    assert_eq!(Tokenizer::parse_model(&t.model_bytes()).unwrap(), t);
}

fn sample_like(t: &Tokenizer, text: &str) -> Vec<u32> {
    let place = t.pieces().iter().position(|p| p.text == text);
    vec![place.unwrap() as u32]
}

#[test]
fn special_names_in_a_text_should_be_text() {
    let t = sample();
    for text in ["</s>", "<s>", "<0x41>", "<unk>"] {
        let ids = t.encode(text.as_bytes());
        assert!(ids.len() > 1 && ids.iter().all(|id| *id >= BYTE_FIRST), "{text}");
        assert_eq!(t.decode(&ids), text);
    }
    assert_eq!(t.decode(&[BEGIN, END, 9_999]), "");
    assert_eq!(t.decode(&[UNKNOWN]), " \u{2047} ");
}

#[test]
fn training_should_not_depend_on_how_documents_are_cut() {
    let text = corpus();
    let options = TrainOptions::new(380);
    for part in [1, 2, 3, 7, 4096] {
        let mut trainer = Trainer::new(&options).unwrap();
        for bytes in text.as_bytes().chunks(part) {
            trainer.feed(bytes);
        }
        let found = trainer.finish(&mut |_| ()).unwrap();
        assert_eq!(&found, sample(), "parts of {part} bytes");
    }
    let mut calls = Vec::new();
    let documents = text.split_inclusive('\n').map(|line| Ok(line.as_bytes()));
    assert_eq!(&train(documents, &options, &mut |p| calls.push(p)).unwrap(), sample());
    assert!(matches!(calls.last(), Some(Progress::Merge { done, total }) if done == total));
}

#[test]
fn text_that_gives_nothing_should_be_refused() {
    let options = TrainOptions::new(300);
    for text in ["", "\0\0\0", "\n\t\r"] {
        let message = learn(text, &options).unwrap_err().to_string();
        assert!(message.starts_with("the corpus has no text"), "{message}");
    }
    let none: [std::io::Result<&[u8]>; 0] = [];
    assert!(matches!(
        train(none, &options, &mut |_| ()),
        Err(TokenizerError::NoText { bytes: 0 })
    ));
    assert!(matches!(
        train([Ok(&b"\xff\xfe\x80"[..])], &options, &mut |_| ()),
        Err(TokenizerError::NoText { bytes: 3 })
    ));
    let failing: [std::io::Result<&[u8]>; 2] = [Ok(b"a"), Err(std::io::Error::other("disk on fire"))];
    let message = train(failing, &options, &mut |_| ()).unwrap_err().to_string();
    assert!(message.contains("document 1: disk on fire"), "{message}");
}

#[test]
fn vocabularies_that_cannot_be_should_say_what_can() {
    let text = corpus();
    let Err(TokenizerError::VocabularyTooSmall { characters, .. }) = learn(&text, &TrainOptions::new(265)) else {
        panic!("265 ids cannot hold the characters");
    };
    assert!(characters > 20);
    learn(&text, &TrainOptions::new(259 + characters as u32)).unwrap();
    let Err(TokenizerError::CorpusTooSmall { possible, .. }) = learn(&text, &TrainOptions::new(60_000)) else {
        panic!("this corpus has no 60,000 pieces");
    };
    learn(&text, &TrainOptions::new(possible as u32)).unwrap();
    assert!(learn(&text, &TrainOptions::new(possible as u32 + 1)).is_err());
    let options: [fn(&mut TrainOptions); 4] = [
        |o| o.vocab = 259,
        |o| o.coverage_millionths = 0,
        |o| o.piece_chars_max = 0,
        |o| o.memory_bytes = 10,
    ];
    for change in options {
        let mut options = TrainOptions::new(380);
        change(&mut options);
        assert!(matches!(learn(&text, &options), Err(TokenizerError::Option { .. })));
    }
}

#[test]
fn rare_characters_should_be_bytes() {
    let text = format!("{}\u{1f999}", "the people ".repeat(5000));
    let t = learn(&text, &TrainOptions::new(275)).unwrap();
    assert_eq!(
        t.encode("\u{1f999}".as_bytes()),
        [0xf0 + 3, 0x9f + 3, 0xa6 + 3, 0x99 + 3]
    );
}

#[test]
fn long_lines_and_many_words_should_stay_within_memory() {
    // One line without a space, longer than any buffer; then more different words than fit in the memory.
    let mut text = "abcdefghij".repeat(300_000);
    let mut draw = 7u64;
    for _ in 0..60_000 {
        draw = draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        text += &format!(
            " {}",
            (0..8)
                .map(|i| char::from(b'a' + (draw >> (8 * i) & 15) as u8))
                .collect::<String>()
        );
    }
    let options = TrainOptions {
        memory_bytes: 1 << 20,
        ..TrainOptions::new(400)
    };
    let once = learn(&text, &options).unwrap();
    assert_eq!(once, learn(&text, &options).unwrap());
    let ids = once.encode(text.as_bytes());
    assert_eq!(once.decode_bytes(&ids), text.as_bytes());
}

#[test]
fn models_of_other_kinds_should_be_refused() {
    let pieces = sample().pieces().to_vec();
    let normal = Normalizer {
        dummy_prefix: false,
        escape_spaces: true,
    };
    let file = |pieces: &[Piece], normalizer| model_proto::write(pieces, normalizer, 1.0, 16);
    let refused = |bytes: &[u8], words: &str| {
        let message = Tokenizer::parse_model(bytes).unwrap_err().to_string();
        assert!(message.contains(words), "{message}");
    };
    refused(b"", "no pieces");
    refused(b"\x0a\xff\xff\xff\xff\x0f", "ends inside");
    refused(b"hello world, this is text", "not a tokenizer.model");
    let whole = file(&pieces, normal);
    refused(&whole[..whole.len() / 2], "ends inside");
    refused(&file(&pieces[..200], normal), "256 bytes");
    let mut changed = pieces.clone();
    changed[300].text = changed[301].text.clone();
    refused(&file(&changed, normal), "there twice");
    changed[300].text = "a b".into();
    refused(&file(&changed, normal), "has a space");
    changed[300].text = String::new();
    refused(&file(&changed, normal), "is empty");
    let mut changed = pieces.clone();
    changed[300].kind = PieceKind::Unknown;
    refused(&file(&changed, normal), "second unknown piece");
    changed[300].kind = PieceKind::Byte;
    refused(&file(&changed, normal), "without the name of a byte");
    let mut changed = pieces.clone();
    changed.last_mut().unwrap().kind = PieceKind::Control;
    refused(&file(&changed, normal), "control piece of one character");
    let mut bytes_alone = fixed_pieces();
    bytes_alone.swap(10, 20);
    refused(&file(&fixed_pieces(), normal), "three tokens");
    let raw = Normalizer {
        dummy_prefix: false,
        escape_spaces: false,
    };
    refused(&file(&pieces, raw), "does not write spaces");
    refused(&file(&bytes_alone, raw), "not ids 3 to 258");
    refused(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 9\n",
        "run git lfs pull",
    );
    // Other trainer options, appended: the last value of a field counts.
    for (extra, words) in [
        (&b"\x12\x02\x18\x01"[..], "not BPE"),
        (b"\x12\x03\x98\x02\x00", "no byte fallback"),
        (b"\x12\x03\xc8\x02\x05", "not ids 0, 1 and 2"),
        (b"\x12\x03\xc0\x01\x01", "suffixes"),
        (b"\x1a\x02\x20\x01", "removes spaces"),
        (b"\x1a\x03\x12\x01x", "normalises"),
    ] {
        refused(&[&whole[..], extra].concat(), words);
    }
}

/// The sample as other trainers arrange it: control pieces of their own after the first three, the bytes at the end in
/// falling order. And the new id of each old one.
fn rearranged() -> (Tokenizer, Vec<u32>) {
    let old = sample().pieces();
    let mut order: Vec<usize> = (0..3).chain(FIRST_LEARNED as usize..old.len()).collect();
    order.extend((3..FIRST_LEARNED as usize).rev());
    let mut pieces: Vec<Piece> = order.iter().map(|id| old[*id].clone()).collect();
    for name in ["[INST]", "<pad>"] {
        pieces.insert(3, Piece::named(name, PieceKind::Control));
    }
    let place = |id: usize| order.iter().position(|found| *found == id).unwrap() as u32;
    let new_ids = (0..old.len()).map(place).map(|id| if id < 3 { id } else { id + 2 });
    let normalizer = sample().normalizer;
    let bytes = model_proto::write(&pieces, normalizer, 1.0, 16);
    (Tokenizer::parse_model(&bytes).unwrap(), new_ids.collect())
}

#[test]
fn bytes_should_be_found_by_name_when_other_trainers_put_them_elsewhere() {
    let (tokenizer, new_ids) = rearranged();
    assert_ne!(tokenizer.pieces()[3..], sample().pieces()[3..]);
    for text in [
        "",
        "the people of 1789",
        " é🦙\n\0 naïve",
        "[INST]</s><0x41>",
        "aaaaaaa  ------",
    ] {
        let expected: Vec<u32> = sample()
            .encode(text.as_bytes())
            .iter()
            .map(|id| new_ids[*id as usize])
            .collect();
        let found = tokenizer.encode(text.as_bytes());
        assert_eq!(found, expected, "{text:?}");
        assert_eq!(tokenizer.decode(&found), text);
    }
    let invalid = b"\xff\xfe the";
    assert_eq!(tokenizer.decode_bytes(&tokenizer.encode(invalid)), invalid);
    // Control pieces have no text, wherever they are, and Hugging Face's programs must know them.
    assert_eq!(tokenizer.decode(&[1, 2, 3, 4]), "");
    let json: serde_json::Value = serde_json::from_str(&tokenizer.tokenizer_json()).unwrap();
    let added: Vec<&str> = json["added_tokens"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| t["content"].as_str().unwrap())
        .collect();
    assert_eq!(added, ["<unk>", "<s>", "</s>", "<pad>", "[INST]"]);
    assert_eq!(Tokenizer::parse_model(&tokenizer.model_bytes()).unwrap(), tokenizer);
}

#[test]
fn an_error_of_a_file_should_name_it_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(TOKENIZER_MODEL_FILE);
    let message = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        Tokenizer::read_model(&path).unwrap_err().to_string()
    };
    let found = message(b"version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 9\n");
    assert_eq!(found.matches(path.to_str().unwrap()).count(), 1, "{found}");
    assert!(found.ends_with("it is a Git LFS pointer: run git lfs pull"), "{found}");
    let found = message(b"");
    assert_eq!(found.matches(path.to_str().unwrap()).count(), 1, "{found}");
}

/// The target in `fuzz/` does the same with a fuzzer's patience.
#[test]
fn damaged_models_should_be_refused_or_be_models() {
    let good = learn(&corpus(), &TrainOptions::new(350)).unwrap().model_bytes();
    let mut state = 1u64;
    let mut random = move |below: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below.max(1)
    };
    let (mut refused, mut read) = (0, 0);
    for _ in 0..100_000 {
        let mut bytes = good.clone();
        for _ in 0..=random(2) {
            let at = random(bytes.len());
            let end = at + random(bytes.len() - at).min(40);
            match random(5) {
                0 => bytes[at] ^= 1 << random(8),
                1 => bytes[at] = random(256) as u8,
                2 => drop(bytes.drain(at..end)),
                3 => bytes.truncate(at.max(1)),
                _ => {
                    let part = bytes[at..end].to_vec();
                    bytes.splice(at..at, part);
                }
            }
            if bytes.is_empty() {
                bytes.push(0);
            }
        }
        match Tokenizer::parse_model(&bytes) {
            Err(_) => refused += 1,
            Ok(tokenizer) => {
                assert_eq!(Tokenizer::parse_model(&tokenizer.model_bytes()).unwrap(), tokenizer);
                let ids = tokenizer.encode("the néw\u{0} \u{2581}text ".as_bytes());
                assert!(ids.iter().all(|id| *id < tokenizer.vocab()));
                tokenizer.decode(&ids);
                read += 1;
            }
        }
    }
    assert!(refused > 50_000 && read > 100, "{refused} refused, {read} read");
}

#[test]
fn files_should_come_back_from_disk() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("tokenizer");
    sample().write_files(&out, 128).unwrap();
    assert_eq!(
        &Tokenizer::read_model(&out.join(TOKENIZER_MODEL_FILE)).unwrap(),
        sample()
    );
    let mut names: Vec<_> = std::fs::read_dir(&out)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    names.sort();
    let expected = [
        SPECIAL_TOKENS_FILE,
        TOKENIZER_JSON_FILE,
        TOKENIZER_MODEL_FILE,
        TOKENIZER_CONFIG_FILE,
    ];
    assert_eq!(names, expected);
    let json: serde_json::Value = serde_json::from_str(&sample().tokenizer_json()).unwrap();
    assert_eq!(json["model"]["vocab"]["▁the"], sample_like(sample(), "▁the")[0]);
    assert!(matches!(
        Tokenizer::read_model(&out.join("none")),
        Err(TokenizerError::Io { .. })
    ));
}

/// Texts that are likely to meet pieces, borders between them, and everything else.
fn text() -> impl Strategy<Value = String> {
    let likely = prop::collection::vec(
        prop_oneof![
            Just("a".to_owned()),
            Just("aa".to_owned()),
            Just(" ".to_owned()),
            Just("-".to_owned()),
            Just("\u{2581}".to_owned()),
            prop::sample::select(
                sample().pieces()[259..]
                    .iter()
                    .map(|p| p.text.clone())
                    .collect::<Vec<_>>()
            ),
            any::<char>().prop_map(String::from),
        ],
        0..60,
    );
    prop_oneof![likely.prop_map(|parts| parts.concat()), any::<String>()]
}

proptest! {
    #[test]
    fn ids_should_be_those_of_the_definition(text in text()) {
        prop_assert_eq!(sample().encode(text.as_bytes()), by_definition(sample(), &text));
    }

    #[test]
    fn an_encoder_should_give_the_same_ids_with_and_without_memory(texts in prop::collection::vec(text(), 1..20)) {
        let mut encoder = sample().encoder();
        for text in &texts {
            let mut ids = Vec::new();
            encoder.encode(text.as_bytes(), &mut ids);
            prop_assert_eq!(ids, sample().encode(text.as_bytes()));
        }
    }

    #[test]
    fn every_text_should_come_back(text in text()) {
        let ids = sample().encode(text.as_bytes());
        prop_assert!(ids.iter().all(|id| (BYTE_FIRST..sample().vocab()).contains(id)));
        prop_assert_eq!(sample().decode(&ids), text.replace(SPACE, " "));
    }

    #[test]
    fn all_bytes_should_come_back(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        // Random bytes hold no U+2581, which comes back as a space.
        prop_assume!(!bytes.windows(3).any(|w| w == "\u{2581}".as_bytes()));
        prop_assert_eq!(sample().decode_bytes(&sample().encode(&bytes)), bytes);
    }

    #[test]
    fn any_ids_should_decode(ids in prop::collection::vec(any::<u32>(), 0..100)) {
        sample().decode(&ids);
    }

    #[test]
    fn random_files_should_be_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(Tokenizer::parse_model(&bytes).is_err());
    }

    #[test]
    fn damaged_files_should_not_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
        truncate in any::<bool>(),
    ) {
        let mut bytes = sample().model_bytes();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if truncate {
            bytes.truncate(cut.index(bytes.len()));
        }
        // A damaged file that is still accepted must work.
        if let Ok(t) = Tokenizer::parse_model(&bytes) {
            let text = "the people  of 1789 é\n".as_bytes();
            prop_assert_eq!(t.decode_bytes(&t.encode(text)), text);
            t.tokenizer_json();
        }
    }
}
