//! Text as it comes.

use alice_generate::TextStream;

#[test]
fn characters_should_never_be_split() {
    let text = "né 🦙 日本\0\u{fffd}x";
    for size in 1..5 {
        let (mut stream, mut all) = (TextStream::default(), String::new());
        for part in text.as_bytes().chunks(size) {
            let shown = stream.push(part);
            assert!(text[all.len()..].starts_with(&shown), "{shown:?} after {all:?}");
            all += &shown;
        }
        assert_eq!(stream.finish(), "");
        assert_eq!(all, text);
    }
}

#[test]
fn broken_bytes_should_read_as_in_the_standard_library() {
    for bytes in [
        &b"a\xff\xfeb"[..],
        b"\xe6\x97x",
        b"\xf0\x9f\xa6",
        b"\xc3\xc3\xa9",
        b"\xed\xa0\x80",
        b"\x80\xe6",
        b"\xf4\x90\x80\x80",
    ] {
        let (mut stream, mut all) = (TextStream::default(), String::new());
        for byte in bytes {
            all += &stream.push(&[*byte]);
        }
        all += &stream.finish();
        assert_eq!(all, String::from_utf8_lossy(bytes), "{bytes:x?}");
    }
}

#[test]
fn what_could_become_a_character_should_be_kept() {
    let mut stream = TextStream::default();
    assert_eq!(stream.push(b"a\xf0\x9f"), "a");
    assert_eq!(stream.push(b"\xa6"), "");
    assert_eq!(stream.push(b"\x99!"), "🦙!");
}
