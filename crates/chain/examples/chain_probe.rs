//! Prints what a node says about its chain: `cargo run -p alice-chain --example chain_probe -- ws://127.0.0.1:9944
//! [0x<account> …]`.

use alice_chain::{Chain, EpochStatus, Hash};
use anyhow::{Context, Result};

fn account(text: &str) -> Result<Hash> {
    let mut bytes = [0; 32];
    let digits = text.strip_prefix("0x").unwrap_or(text);
    hex::decode_to_slice(digits, &mut bytes)
        .with_context(|| format!("'{text}' is not a 32-byte public key in hexadecimal"))?;
    Ok(bytes)
}

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let url = arguments.next().unwrap_or_else(|| "ws://127.0.0.1:9944".into());
    let chain = Chain::connect(&url).await?;
    let (best, finalized) = (chain.best().await?, chain.finalized().await?);
    let parameters = chain.parameters().await?;
    println!("genesis      0x{}", hex::encode(chain.genesis_hash()));
    println!("best         {} 0x{}", best.number, hex::encode(best.hash));
    println!("finalised    {} 0x{}", finalized.number, hex::encode(finalized.hash));
    println!(
        "parameters   epoch {} blocks, window {} blocks, late window {} epochs, slot {} ms, run 0x{}",
        parameters.epoch_blocks,
        parameters.window_blocks,
        parameters.late_window_epochs,
        parameters.slot_ms,
        hex::encode(parameters.run_hash)
    );
    let servers = chain.parameter_servers().await?;
    println!("servers      set {}", servers.set_id);
    for (index, key) in servers.keys.iter().enumerate() {
        println!("  {index:>3}        0x{}", hex::encode(key));
    }
    match chain.vrf_output(finalized.number).await {
        Ok(seed) => println!(
            "vrf          0x{} (block {})",
            hex::encode(seed.vrf_output),
            seed.number
        ),
        Err(e) => println!("vrf          {e}"),
    }
    match chain.latest_accepted().await? {
        Some((epoch, hash)) => println!("accepted     epoch {epoch}, commitment 0x{}", hex::encode(hash)),
        None => println!("accepted     nothing yet"),
    }
    let now = best.number / parameters.epoch_blocks.max(1);
    for epoch in now.saturating_sub(5)..=now {
        let status = match chain.epoch_status(epoch).await? {
            EpochStatus::Open => "open".to_owned(),
            EpochStatus::Accepted { at_block, round, .. } => format!("accepted in block {at_block}, round {round}"),
            EpochStatus::Final { at_block, .. } => format!("final, accepted in block {at_block}"),
            EpochStatus::Settled { block } => format!("settled in block {block}"),
            EpochStatus::Forfeited => "forfeited".to_owned(),
        };
        let paid = chain.ledger(epoch).await?.map_or(String::new(), |l| {
            format!(
                ", {} of {} planck paid on {} of {} pages",
                l.paid, l.budget, l.pages_paid, l.pages
            )
        });
        println!("epoch        {epoch}: {status}{paid}");
    }
    println!("issuance     {} planck", chain.total_issuance().await?);
    for text in arguments {
        println!("balance      {text} {} planck", chain.balance(account(&text)?).await?);
    }
    Ok(())
}
