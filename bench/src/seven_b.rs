//! One update of a run's real shapes, from a gradient that is never in memory as a whole.

use crate::gradient;
use crate::measure::{Table, cpu_seconds, peak_memory};
use alice_spec::{RunSpec, TensorShape};
use alice_update::aggregate::{self, EncodedAggregate, WeightedMean};
use alice_update::{EncodedUpdate, Encoder, EncoderOutput, Entries, Header, Layout, decode};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::ops::Range;
use std::path::Path;
use std::time::Instant;

/// Values generated and pushed at once.
// 64 MiB, small against the peaks that are measured: 340 to 1,361 MiB (docs/measurements/updates.md).
const PIECE: usize = 1 << 24;

/// The encoded part of a run: the whole model or a fragment.
struct Case {
    spec: RunSpec,
    layout: Layout,
    /// Tensors that the layout covers.
    tensors: Range<usize>,
    threads: usize,
}

impl Case {
    fn read(run: &Path, fragment: Option<u32>, threads: usize) -> Result<Self> {
        let text = std::fs::read_to_string(run).with_context(|| format!("{} cannot be read", run.display()))?;
        let spec = RunSpec::parse(&text)?;
        let tensors = fragment.map_or(0..spec.tensors().len(), |p| spec.fragment_tensors(p));
        ensure!(
            !tensors.is_empty(),
            "the run has fragments 0 to {} only",
            spec.task.fragments - 1
        );
        let layout = Layout::from_spec(&spec).fragment(tensors.clone());
        Ok(Self {
            spec,
            layout,
            tensors,
            threads,
        })
    }

    /// The update of miner `number`.
    fn encode(&self, number: u64, clocks: &mut Clocks) -> Result<EncoderOutput> {
        let header = Header {
            run_hash: self.spec.run_hash(),
            epoch: 1,
            base_root: [0; 32],
        };
        let mut encoder = Encoder::new(&self.layout, &self.spec.update)?.threads(self.threads);
        let mut piece = vec![0.0f32; PIECE];
        // A stretch of the synthetic stream for each miner: updates have nothing in common, so the aggregate is as
        // large as it can be.
        let mut at = number * self.spec.parameters();
        let lens = self.spec.tensors().into_iter().map(|tensor: TensorShape| tensor.len());
        for (number, tensor) in lens.enumerate().skip(self.tensors.start).take(self.tensors.len()) {
            // Each tensor has values of its own size, as in a real model: thresholds do not carry over.
            let size = 1e-4 * (1 + number % 7) as f32;
            let mut left = tensor;
            while left > 0 {
                let now = left.min(PIECE as u64) as usize;
                let values = &mut piece[..now];
                clocks.making.time(|| gradient::fill(at, size, values, self.threads));
                clocks.pushing.time(|| encoder.push(values))?;
                at += now as u64;
                left -= now as u64;
            }
        }
        // Before finishing, where the encoder needs most: the peak is the codec's and not the generator's.
        drop(piece);
        Ok(clocks.finishing.time(|| encoder.finish(&header))?)
    }
}

#[derive(Default)]
struct Clocks {
    making: Clock,
    pushing: Clock,
    finishing: Clock,
}

/// A round of `miners` updates: encodes and checks them, and encodes and checks the aggregate.
pub fn round(run: &Path, fragment: Option<u32>, miners: u64, threads: usize) -> Result<Vec<Table>> {
    let case = Case::read(run, fragment, threads)?;
    let update = &case.spec.update;
    let (mut received, mut checking) = (Vec::new(), Clock::default());
    for number in 0..miners {
        let bytes = case.encode(number, &mut Clocks::default())?.bytes;
        // Kept encoded, as a server keeps them: 13 updates of a fragment are 208 MB here and would be 2.1 GB decoded.
        received.push(checking.time(|| EncodedUpdate::check(&case.layout, update, bytes))?);
    }
    let (before, mut publishing) = (peak_memory(), Clock::default());
    let mean = WeightedMean {
        fragments: std::slice::from_ref(&case.layout),
        updates: received.iter().map(|update| (0, update, 1.0)).collect(),
        entry_weight: case.spec.outer.entry_weight,
    };
    let published = publishing.time(|| aggregate::encode_aggregate(&case.layout, update.publish_bits, &mean, [1; 32]));
    let mut reading = Clock::default();
    let d = reading.time(|| EncodedAggregate::check(&case.layout, published))?;
    let mib = |bytes: u64| bytes >> 20;
    let sent: usize = received.iter().map(|update| update.count()).sum();
    let rows = vec![
        vec![json!("run"), json!(case.spec.name)],
        vec![json!("updates"), json!(miners)],
        vec![json!("entries of all updates"), json!(sent)],
        vec![json!("entries of the aggregate"), json!(d.count())],
        vec![json!("aggregate, bytes"), json!(d.bytes().len())],
        vec![
            json!("checking an update, CPU s"),
            json!(checking.cpu_s / miners as f64),
        ],
        vec![json!("mean and publication, CPU s"), json!(publishing.cpu_s)],
        vec![json!("one walk over the aggregate, CPU s"), json!(reading.cpu_s)],
        vec![
            json!("peak memory (VmHWM) when the updates were there, MiB"),
            json!(before.map(mib)),
        ],
        vec![json!("peak memory (VmHWM), MiB"), json!(peak_memory().map(mib))],
    ];
    Ok(vec![Table {
        title: "A round of the run".into(),
        columns: vec!["what", "seen"],
        rows,
    }])
}

/// Encodes one update and decodes it again.
pub fn report(run: &Path, fragment: Option<u32>, threads: usize) -> Result<Vec<Table>> {
    let case = Case::read(run, fragment, threads)?;
    let mut clocks = Clocks::default();
    let encoded = case.encode(0, &mut clocks)?;
    let Case { spec, layout, .. } = &case;
    let learning = layout.covered().len();
    let mut decoding = Clock::default();
    let decoded = decoding.time(|| decode(layout, &spec.update, &encoded.bytes))?;
    ensure!(decoded == encoded.sent, "what was decoded is not what was sent");
    ensure!(
        encoded.bytes.len() as u64 <= spec.update.budget_bytes,
        "the update is larger than its budget"
    );
    let (entries, parameters) = (decoded.indices.len() as f64, learning as f64);
    let budget = spec.update.budget_bytes as f64;
    let mut rows = vec![
        vec![json!("run"), json!(spec.name)],
        vec![json!("parameters of the run"), json!(spec.parameters())],
        vec![json!("parameters of the update"), json!(learning)],
        vec![json!("budget, bytes"), json!(spec.update.budget_bytes)],
        vec![json!("update, bytes"), json!(encoded.bytes.len())],
        vec![
            json!("of the budget, %"),
            json!(100.0 * encoded.bytes.len() as f64 / budget),
        ],
        vec![json!("entries"), json!(decoded.indices.len())],
        vec![json!("density, %"), json!(100.0 * entries / parameters)],
        vec![json!("largest index"), json!(decoded.indices.last())],
        vec![
            json!("bits of an entry, all"),
            json!(encoded.bytes.len() as f64 * 8.0 / entries),
        ],
        vec![json!("decoded again and equal"), json!(true)],
        vec![json!("threads"), json!(threads)],
    ];
    for (name, clock) in [
        ("making the gradient", &clocks.making),
        ("encode: selecting", &clocks.pushing),
        ("encode: choosing and writing", &clocks.finishing),
        ("decode", &decoding),
    ] {
        rows.push(vec![json!(format!("{name}, wall s")), json!(clock.wall_s)]);
        rows.push(vec![json!(format!("{name}, CPU s")), json!(clock.cpu_s)]);
    }
    let encode_cpu_s = clocks.pushing.cpu_s + clocks.finishing.cpu_s;
    rows.push(vec![
        json!("encode, millions of values for each CPU-second"),
        json!(parameters / encode_cpu_s / 1e6),
    ]);
    rows.push(vec![
        json!("peak memory (VmHWM), MiB"),
        json!(peak_memory().map(|bytes| bytes >> 20)),
    ]);
    Ok(vec![Table {
        title: "One update of the run".into(),
        columns: vec!["what", "seen"],
        rows,
    }])
}

#[derive(Default)]
struct Clock {
    wall_s: f64,
    cpu_s: f64,
}

impl Clock {
    fn time<T>(&mut self, call: impl FnOnce() -> T) -> T {
        let (cpu, wall) = (cpu_seconds(), Instant::now());
        let result = call();
        self.cpu_s += cpu_seconds() - cpu;
        self.wall_s += wall.elapsed().as_secs_f64();
        result
    }
}
