//! Builds the corpus of a development run and prints the lines for `[data]` of its run specification:
//! `cargo run -p alice-corpus --example corpus_roots -- TEXT_DIR OUT_DIR`.

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [text_dir, out_dir] = &arguments[..] else {
        return Err("usage: corpus_roots TEXT_DIR OUT_DIR".into());
    };
    let built = alice_corpus::build_development(Path::new(text_dir), Path::new(out_dir))?;
    eprintln!(
        "{} documents, {} of them in the reserve, {} files left out",
        built.documents, built.reserve_documents, built.left_out
    );
    println!("corpus_root = \"{}\"", hex::encode(built.corpus.root));
    println!("reserve_root = \"{}\"", hex::encode(built.reserve.root));
    println!("corpus_tokens = {}", built.corpus.tokens());
    println!("reserve_tokens = {}", built.reserve.tokens());
    Ok(())
}
