//! The commands of the program, from parsed flags to an exit code.

use crate::{
    MinerError,
    cli::{Cli, Command, PlaceArgs, RunArgs},
    files::{self, DirLock},
    generate,
    key::MiningKey,
    memory::device,
    memory::plan,
    miner::Miner,
    report::Reporter,
    settings::{self, Settings},
    settlement::pages::Pays,
    settlement::payout::{chain_error, push},
    settlement::receipts::{Receipts, Record},
    shutdown::Stop,
};
use alice_api::ss58;
use alice_chain::Chain;
use serde_json::{Value, json};

/// Does what the command line says.
pub async fn execute(cli: Cli) -> Result<(), MinerError> {
    match cli.command {
        None => run(&cli.run).await,
        Some(Command::Run(args)) => run(&args).await,
        Some(Command::Plan(args)) => plan::execute(&args),
        Some(Command::Generate(args)) => generate::run(&args).await,
        Some(Command::Devices { json }) => {
            devices(json);
            Ok(())
        }
        Some(Command::Receipts { verify, json, place }) => receipts(&place, verify, json),
        Some(Command::Payout { epoch, chain, place }) => payout(epoch, chain, &place).await,
        Some(Command::Key { json, place }) => key(&place, json),
    }
}

async fn run(args: &RunArgs) -> Result<(), MinerError> {
    let settings = Settings::load(args)?;
    let device = device::resolve(&settings.device)?;
    if let Some(threads) = settings.threads {
        alice_model::set_threads(threads.into());
    }
    files::make_dir(&settings.data_dir)?;
    let _lock = DirLock::take(&settings.data_dir)?;
    let key = MiningKey::load_or_create(&settings.data_dir)?;
    let stop = Stop::on_signals()?;
    let mut reporter = Reporter::new(settings.json);
    if key.created {
        let text = format!("made a mining key: {} (back this up)", key.path.display());
        reporter.event(
            "key_created",
            &text,
            json!({ "path": key.path, "public": key.key.public() }),
        );
    }
    let (public, payout) = (key.key.public(), ss58::encode(&settings.payout.0));
    reporter.event(
        "started",
        &format!(
            "alice-miner {} on {}, key {public}, pays {payout}",
            env!("CARGO_PKG_VERSION"),
            device::name(device)
        ),
        json!({
            "version": env!("CARGO_PKG_VERSION"), "device": device::name(device), "key": public, "payout": payout,
            "ps": settings.client.url(), "data_dir": settings.data_dir,
        }),
    );
    if let Some(text) = device::why_not_faster(&settings.device, device) {
        reporter.event(
            "device",
            &text,
            json!({ "device": device::name(device), "reason": text }),
        );
    }
    Miner::new(settings, key, device, reporter, stop)?.run().await
}

fn devices(json: bool) {
    for d in device::list() {
        match (json, &d.problem) {
            (true, problem) => println!(
                "{}",
                json!({ "device": d.name, "detail": d.description, "problem": problem })
            ),
            (false, None) => println!("{:<8} {}", d.name, d.description),
            (false, Some(problem)) => println!("{:<8} not usable: {problem}", d.name),
        }
    }
}

fn receipts(place: &PlaceArgs, verify: bool, as_json: bool) -> Result<(), MinerError> {
    let (data_dir, _) = settings::place(place)?;
    let store = Receipts::open(&data_dir)?;
    let mut bad = 0u32;
    for record in store.iter() {
        let problem = if verify { record.verify().err() } else { None };
        bad += u32::from(problem.is_some());
        if as_json {
            let mut value = serde_json::to_value(record).unwrap_or_default();
            if let (true, Value::Object(object)) = (verify, &mut value) {
                object.insert("problem".into(), json!(problem));
            }
            println!("{value}");
        } else {
            println!("{}", receipt_line(record, verify, problem.as_deref()));
        }
    }
    if !as_json {
        let c = store.counts();
        println!(
            "submitted {} (accepted {}, late {}, refused {}, voided {}, pending {}) in {}",
            c.submitted,
            c.accepted,
            c.late,
            c.refused,
            c.voided,
            c.pending,
            data_dir.join("receipts").display()
        );
    }
    match bad {
        0 => Ok(()),
        n => Err(MinerError::Verify(n)),
    }
}

fn receipt_line(record: &Record, verify: bool, problem: Option<&str>) -> String {
    let check = match (verify, problem) {
        (false, _) => String::new(),
        (true, None) if record.receipt.is_none() => "  unsigned".into(),
        (true, None) => {
            let by = record
                .receipt
                .as_ref()
                .map(|r| r.ps_key.to_string())
                .unwrap_or_default();
            format!("  verified, signed by {by}")
        }
        (true, Some(problem)) => format!("  FORGED OR DAMAGED: {problem}"),
    };
    format!(
        "epoch {:<6} {}  {:>9} bytes  {}{check}",
        record.epoch,
        record.id,
        record.bytes,
        record.reason()
    )
}

async fn payout(epoch: u32, chain: Option<String>, place: &PlaceArgs) -> Result<(), MinerError> {
    let (data_dir, from_file) = settings::place(place)?;
    let file = settings::config_file(place)?;
    let url = chain.or(from_file).ok_or(MinerError::Missing {
        what: "node",
        flag: "--chain ws://HOST:PORT",
        env: "ALICE_CHAIN",
        key: "chain",
        file,
    })?;
    let pays = Pays::open(&data_dir)?;
    let with_page: Vec<_> = pays.of_epoch(epoch).filter(|p| p.page.is_some()).collect();
    if with_page.is_empty() {
        return Err(MinerError::NoPage {
            epoch,
            dir: data_dir.join("pages"),
        });
    }
    let chain = Chain::connect(&url).await.map_err(chain_error)?;
    for pay in with_page {
        push(&chain, pay).await?;
        let address = ss58::encode(&pay.account.0);
        println!("epoch {epoch}: the page that pays {address} is on the chain (pushed now, or already paid)");
    }
    Ok(())
}

fn key(place: &PlaceArgs, as_json: bool) -> Result<(), MinerError> {
    let (data_dir, _) = settings::place(place)?;
    let Some(key) = MiningKey::load(&data_dir)? else {
        return Err(MinerError::NoKey(data_dir));
    };
    let public = key.key.public();
    let address = ss58::encode(&public.0);
    if as_json {
        println!("{}", json!({ "public": public, "address": address, "path": key.path }));
    } else {
        println!(
            "public key {public}\naddress    {address} (of the mining key; pay goes to the payout address)\nstored in  {}",
            key.path.display()
        );
    }
    Ok(())
}
