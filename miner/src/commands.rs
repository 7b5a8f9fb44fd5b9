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
    settlement::payout::push,
    settlement::receipts::{Receipts, Record},
    shutdown,
};
use alice_api::ss58;
use alice_chain::Chain;
use alice_program::{manual, output};
use clap::CommandFactory;
use serde_json::{Value, json};
use std::fmt::Write;

/// Runs the command that the command line names.
///
/// # Errors
/// The command's own; [`MinerError::exit_code`] is the program's exit code.
pub async fn execute(cli: Cli) -> Result<(), MinerError> {
    match cli.command {
        None => run(&cli.run).await,
        Some(Command::Run(args)) => run(&args).await,
        Some(Command::Plan(args)) => plan::execute(&args),
        Some(Command::Generate(args)) => generate::run(&args).await,
        Some(Command::Devices { json }) => print(&devices(json)),
        Some(Command::Receipts { verify, json, place }) => receipts(&place, verify, json),
        Some(Command::Payout { epoch, chain, place }) => payout(epoch, chain, &place).await,
        Some(Command::Key { json, place }) => key(&place, json),
        Some(Command::Completions(args)) => {
            // Generators write ASCII; a lossy conversion cannot lose anything here.
            let script = manual::completions(Cli::command(), args.shell);
            print(&String::from_utf8_lossy(&script))
        }
        Some(Command::Man(args)) => {
            let pages = manual::write_man_pages(Cli::command(), &args.out);
            let pages = pages.map_err(|e| MinerError::write("write man pages in", &args.out, e))?;
            print(&format!("{pages} pages in {}\n", args.out.display()))
        }
    }
}

/// Writes a command's result to standard output; a reader that closed the pipe has what it wanted.
///
/// # Errors
/// [`MinerError::Output`] for every other failure.
pub fn print(text: &str) -> Result<(), MinerError> {
    output::print(text).map_err(MinerError::Output)
}

async fn run(args: &RunArgs) -> Result<(), MinerError> {
    let settings = Settings::load(args)?;
    // Before the first file is made: a typing error in the device must not leave a data directory behind.
    let device = device::resolve(&settings.device)?;
    if let Some(threads) = settings.threads {
        alice_model::set_threads(threads.into());
    }
    files::make_dir(&settings.data_dir)?;
    // Before the key is read: two miners with one key would each claim tasks and spoil the other's journal.
    let _lock = DirLock::take(&settings.data_dir)?;
    let key = MiningKey::load_or_create(&settings.data_dir)?;
    let shutdown = shutdown::on_signals()?;
    let mut reporter = Reporter::new(settings.json);
    // Paths go into JSON as text: serde refuses those that are not UTF-8.
    if key.created {
        let path = key.path.display().to_string();
        reporter.event(
            "key_created",
            &format!("made a mining key: {path} (back this up)"),
            json!({ "path": path, "public": key.key.public() }),
        );
    }
    let (public, payout) = (key.key.public(), ss58::encode(&settings.payout.0));
    reporter.event(
        "started",
        &format!(
            "alice-miner {} on {}, key {public}, pays {payout}",
            alice_program::VERSION,
            device::name(device)
        ),
        json!({
            "version": alice_program::VERSION, "device": device::name(device), "key": public, "payout": payout,
            "ps": settings.client.url(), "data_dir": settings.data_dir.display().to_string(),
        }),
    );
    if let Some(text) = device::why_not_faster(&settings.device, device) {
        reporter.event(
            "device",
            &text,
            json!({ "device": device::name(device), "reason": text }),
        );
    }
    Miner::new(settings, key, device, reporter, shutdown)?.run().await
}

fn devices(as_json: bool) -> String {
    let line = |device: device::Shown| match (as_json, device.problem) {
        (true, problem) => {
            json!({ "device": device.name, "detail": device.description, "problem": problem }).to_string()
        }
        (false, None) => format!("{:<8} {}", device.name, device.description),
        (false, Some(problem)) => format!("{:<8} not usable: {problem}", device.name),
    };
    device::list().into_iter().map(|device| line(device) + "\n").collect()
}

fn receipts(place: &PlaceArgs, verify: bool, as_json: bool) -> Result<(), MinerError> {
    let data_dir = settings::place(place, None)?.data_dir;
    let store = Receipts::open(&data_dir)?;
    let (mut text, mut bad) = (String::new(), 0);
    for record in store.iter() {
        let problem = if verify { record.verify().err() } else { None };
        bad += u32::from(problem.is_some());
        if as_json {
            let mut value = serde_json::to_value(record).unwrap_or_default();
            if let (true, Value::Object(object)) = (verify, &mut value) {
                object.insert("problem".into(), json!(problem));
            }
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{value}");
        } else {
            let _ = writeln!(text, "{}", receipt_line(record, verify, problem.as_deref()));
        }
    }
    if !as_json {
        let c = store.counts();
        let _ = writeln!(
            text,
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
    // With --verify the exit code is the result, so a reader that closed the pipe must not hide it.
    output::print_while_read(&text).map_err(MinerError::Output)?;
    match bad {
        0 => Ok(()),
        n => Err(MinerError::Verify(n)),
    }
}

fn receipt_line(record: &Record, verify: bool, problem: Option<&str>) -> String {
    let check = match (verify, problem, &record.receipt) {
        (false, ..) => String::new(),
        (true, None, None) => "  unsigned".into(),
        (true, None, Some(receipt)) => format!("  verified, signed by {}", receipt.ps_key),
        (true, Some(problem), _) => format!("  FORGED OR DAMAGED: {problem}"),
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
    let place = settings::place(place, chain)?;
    let url = place.chain.ok_or(MinerError::Missing {
        what: "node",
        flag: "--chain ws://HOST:PORT",
        env: "ALICE_CHAIN",
        key: "chain",
        file: place.file,
    })?;
    let pays = Pays::open(&place.data_dir)?;
    // A directory that mined for several payout addresses has a page for each.
    let with_page: Vec<_> = pays.of_epoch(epoch).filter(|p| p.page.is_some()).collect();
    if with_page.is_empty() {
        return Err(MinerError::NoPage {
            epoch,
            dir: place.data_dir.join("pages"),
        });
    }
    let chain = Chain::connect(&url).await?;
    for pay in with_page {
        push(&chain, pay).await?;
        let address = ss58::encode(&pay.account.0);
        print(&format!(
            "epoch {epoch}: the page that pays {address} is on the chain (pushed now, or already paid)\n"
        ))?;
    }
    Ok(())
}

fn key(place: &PlaceArgs, as_json: bool) -> Result<(), MinerError> {
    let data_dir = settings::place(place, None)?.data_dir;
    let Some(key) = MiningKey::load(&data_dir)? else {
        return Err(MinerError::NoKey(data_dir));
    };
    let public = key.key.public();
    let (address, path) = (ss58::encode(&public.0), key.path.display().to_string());
    print(&match as_json {
        true => json!({ "public": public, "address": address, "path": path }).to_string() + "\n",
        false => format!(
            "public key {public}\naddress    {address} (of the mining key; pay goes to the payout address)\nstored in  {path}\n"
        ),
    })
}
