//! Steps that go well, that are interrupted at every stage, and files that something else was at.

use super::*;
use crate::{
    model_root,
    theta::{read_theta, to_le_bytes, write_theta, write_values},
};
use alice_update::Sparse;
use proptest::prelude::*;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

fn tensors() -> Vec<TensorShape> {
    let named = |name: &str, shape: &[u64]| TensorShape {
        name: name.into(),
        shape: shape.to_vec(),
    };
    // A tensor of several groups, the last one short; a tiny one; one of exactly two groups; one of a part of a group.
    vec![
        named("a", &[250, 1000]),
        named("b", &[3]),
        named("c", &[1 << 9, 1 << 8]),
        named("d", &[100, 7]),
    ]
}

fn parameters() -> u64 {
    tensors().iter().map(TensorShape::len).sum()
}

fn theta(seed: u32) -> Vec<f32> {
    (0..parameters() as u32)
        .map(|i| (i.wrapping_add(seed).wrapping_mul(2_654_435_761) >> 8) as f32 * 1e-7 - 0.5)
        .collect()
}

/// `per_mille` of the coordinates of `range`, with values of both signs.
fn sparse(seed: u64, range: std::ops::Range<u64>, per_mille: u64) -> Sparse {
    let mut d = Sparse::default();
    for at in range {
        let word = (at + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        if word % 1000 < per_mille {
            d.indices.push(index(at));
            d.values.push(word as f32 * 1e-10 - 0.2);
        }
    }
    d
}

/// A flat index in the update crate's own width.
fn index<T: TryFrom<u64, Error: std::fmt::Debug>>(at: u64) -> T {
    T::try_from(at).unwrap()
}

fn quiet(_: u64, _: u64) {}

fn create(path: &Path, theta: &[f32]) -> Master {
    Master::create(path, &tensors(), |out| write_values(out, theta), &mut quiet).unwrap()
}

fn open(path: &Path) -> Master {
    Master::open(path, &tensors(), &mut quiet).unwrap()
}

fn bits(theta: &[f32]) -> Vec<u32> {
    theta.iter().map(|v| v.to_bits()).collect()
}

/// The root of what the file holds, by the plain definition.
fn root_on_disk(path: &Path) -> Hash {
    model_root(&tensors(), &read_theta(path, parameters()).unwrap())
}

struct Case {
    _dir: tempfile::TempDir,
    path: PathBuf,
    before: Vec<f32>,
    after: Vec<f32>,
    d: Sparse,
}

/// The step that [`case`] is about.
fn second() -> Sparse {
    sparse(8, 100..260_000, 20)
}

/// Weights on disk with one finished step behind them, and a second one to be made.
fn case() -> Case {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("theta");
    let first = sparse(7, 0..parameters(), 5);
    let mut before = theta(1);
    create(&path, &before).step(&first, 0.9).unwrap();
    aggregate::apply(&mut before, &first, 0.9);
    let d = second();
    let mut after = before.clone();
    aggregate::apply(&mut after, &d, 0.7);
    Case {
        _dir: dir,
        path,
        before,
        after,
        d,
    }
}

#[test]
fn step_should_give_the_bits_and_the_root_of_the_plain_arithmetic() {
    let case = case();
    let master = open(&case.path);
    assert_eq!((master.opened(), master.bytes_hashed()), (Opened::AsLeft, 0));
    assert_eq!(bits(master.theta()), bits(&case.before));
    let master = master.step(&case.d, 0.7).unwrap();
    assert_eq!(bits(master.theta()), bits(&case.after));
    assert_eq!(master.root(), model_root(&tensors(), &case.after));
    assert_eq!(master.previous(), Some(model_root(&tensors(), &case.before)));
    drop(master);
    assert_eq!(std::fs::read(&case.path).unwrap(), to_le_bytes(&case.after));
    let master = open(&case.path);
    assert_eq!((master.opened(), master.bytes_hashed()), (Opened::AsLeft, 0));
    assert_eq!(master.root(), model_root(&tensors(), &case.after));
}

#[test]
fn a_published_aggregate_should_be_stepped_without_being_decoded_as_a_whole() {
    let case = case();
    let lens: Vec<u64> = tensors().iter().map(|tensor| tensor.len()).collect();
    let layout = alice_update::Layout::new(&lens, 4096);
    let bytes = aggregate::encode_aggregate(&layout, 8, &case.d, [5; 32]);
    let decoded = aggregate::decode_aggregate(&layout, &bytes).unwrap();
    let mut expected = case.before.clone();
    aggregate::apply(&mut expected, &decoded, 0.7);
    let published = aggregate::EncodedAggregate::check(&layout, bytes).unwrap();
    let master = open(&case.path).step(&published, 0.7).unwrap();
    assert_eq!(bits(master.theta()), bits(&expected));
    assert_eq!(master.root(), model_root(&tensors(), &expected));
    let master = master.revert().unwrap();
    assert_eq!(bits(master.theta()), bits(&case.before));
}

#[test]
fn step_for_good_should_be_the_same_step_without_a_way_back() {
    let case = case();
    let master = open(&case.path).step_for_good(&case.d, 0.7).unwrap();
    assert_eq!(bits(master.theta()), bits(&case.after));
    assert_eq!(master.root(), model_root(&tensors(), &case.after));
    let hashed = master.bytes_hashed();
    assert!(hashed < parameters() * 4, "{hashed}");
    assert_eq!((master.previous(), master.undo_bytes()), (None, 0));
    assert!(master.revert().is_err());
    let master = open(&case.path);
    assert_eq!((master.opened(), master.previous()), (Opened::Rehashed, None));
    assert_eq!(master.root(), model_root(&tensors(), &case.after));
    // Entries beyond the weights are left out, entries that do not ascend are refused.
    let beyond = Sparse {
        indices: vec![index(parameters() - 1), index(parameters()), index(u64::MAX)],
        values: vec![1.0, 2.0, 3.0],
    };
    let mut expected = case.after.clone();
    aggregate::apply(&mut expected, &beyond, 0.5);
    let master = master.step_for_good(&beyond, 0.5).unwrap();
    assert_eq!(master.root(), model_root(&tensors(), &expected));
    let twice = Sparse {
        indices: vec![index(5), index(5)],
        values: vec![1.0, 1.0],
    };
    assert!(matches!(master.step_for_good(&twice, 0.5), Err(StoreError::Step(_))));
    assert_eq!(root_on_disk(&case.path), model_root(&tensors(), &expected));
}

#[test]
fn step_should_hash_only_the_groups_that_it_touched() {
    let dir = tempfile::tempdir().unwrap();
    let master = create(&dir.path().join("theta"), &theta(1));
    let all = master.bytes_hashed();
    assert_eq!(all, parameters() * 4);
    // The last value of the first group, and the second tensor.
    let d = Sparse {
        indices: vec![65_535, 250_001],
        values: vec![1.0; 2],
    };
    let master = master.step(&d, 0.5).unwrap();
    assert_eq!(master.bytes_hashed() - all, (256 << 10) + 12);
    assert_eq!(master.root(), model_root(&tensors(), master.theta()));
}

#[test]
fn step_should_leave_out_what_lies_beyond_and_refuse_what_does_not_ascend() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("theta");
    let mut expected = theta(1);
    let beyond = parameters();
    let d = Sparse {
        indices: [5, beyond, beyond + 9].map(index).to_vec(),
        values: vec![1.0; 3],
    };
    let master = create(&path, &expected).step(&d, 0.5).unwrap();
    aggregate::apply(&mut expected, &d, 0.5);
    assert_eq!(bits(master.theta()), bits(&expected));
    let root = master.root();
    drop(master);
    for indices in [vec![4, 4], vec![9, 3]] {
        let d = Sparse {
            indices,
            values: vec![1.0; 2],
        };
        assert!(matches!(open(&path).step(&d, 0.5), Err(StoreError::Step(_))));
        let master = open(&path);
        assert_eq!((master.root(), master.opened()), (root, Opened::AsLeft));
    }
    // Nothing to do is a step, too.
    let master = open(&path).step(&Sparse::default(), 0.5).unwrap();
    assert_eq!((master.root(), master.previous()), (root, Some(root)));
}

#[test]
fn revert_should_go_back_by_one_step_and_no_further() {
    let case = case();
    let root = model_root(&tensors(), &case.before);
    let master = open(&case.path).step(&case.d, 0.7).unwrap();
    let after = master.root();
    drop(master);
    let master = open(&case.path).revert().unwrap();
    assert_eq!((master.root(), master.previous()), (root, None));
    assert_eq!(bits(master.theta()), bits(&case.before));
    drop(master);
    let master = open(&case.path);
    assert_eq!((master.root(), master.opened()), (root, Opened::AsLeft));
    assert!(matches!(master.revert(), Err(StoreError::Step(_))));
    // The same step again comes to the same weights.
    let master = open(&case.path).step(&case.d, 0.7).unwrap();
    assert_eq!(master.root(), after);
}

#[test]
fn open_at_should_find_the_root_or_say_what_is_there() {
    let case = case();
    let (before, after) = (
        model_root(&tensors(), &case.before),
        model_root(&tensors(), &case.after),
    );
    open(&case.path).step(&case.d, 0.7).unwrap();
    let at = |root: &Hash| Master::open_at(&case.path, &tensors(), root, &mut quiet).map(|m| m.root());
    assert_eq!(at(&after).unwrap(), after);
    assert!(matches!(at(&[9; 32]), Err(StoreError::Root { found, .. }) if found == after));
    assert_eq!(at(&before).unwrap(), before);
    assert!(matches!(at(&after), Err(StoreError::Root { found, .. }) if found == before));
}

#[test]
fn weights_should_be_opened_by_one_at_a_time_and_of_the_right_size() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("theta");
    let first = create(&path, &theta(1));
    assert!(matches!(
        Master::open(&path, &tensors(), &mut quiet),
        Err(StoreError::Busy(_))
    ));
    drop(first);
    assert!(matches!(
        Master::open(&path, &tensors()[1..], &mut quiet),
        Err(StoreError::ThetaSize { .. })
    ));
    std::fs::write(&path, b"abc").unwrap();
    assert!(matches!(
        Master::open(&path, &tensors(), &mut quiet),
        Err(StoreError::ThetaSize { .. })
    ));
    super::remove(&path).unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    assert!(matches!(
        Master::open(&path, &tensors(), &mut quiet),
        Err(StoreError::Io { .. })
    ));
}

#[test]
fn a_step_that_is_stopped_at_any_stage_should_be_undone_when_opened() {
    for stage in [Stage::Journalled, Stage::Applied, Stage::Flushed, Stage::TreeSaved] {
        let case = case();
        let stopped = open(&case.path).step_through(&case.d, 0.7, &mut |reached, _| stop_at(reached, stage));
        assert!(stopped.is_err());
        let master = open(&case.path);
        assert_eq!(master.opened(), Opened::RolledBack, "{stage:?}");
        assert_eq!(bits(master.theta()), bits(&case.before), "{stage:?}");
        assert_eq!(master.root(), model_root(&tensors(), &case.before), "{stage:?}");
        assert_eq!(master.previous(), None);
        let master = master.step(&case.d, 0.7).unwrap();
        assert_eq!(master.root(), model_root(&tensors(), &case.after), "{stage:?}");
    }
}

#[test]
fn a_revert_that_is_stopped_at_any_stage_should_be_finished_when_opened() {
    for stage in [Stage::Reopened, Stage::Applied, Stage::Flushed, Stage::TreeSaved] {
        let case = case();
        let master = open(&case.path).step(&case.d, 0.7).unwrap();
        let stopped = master.revert_through(&mut |reached, _| stop_at(reached, stage));
        assert!(stopped.is_err());
        let master = open(&case.path);
        assert_eq!(bits(master.theta()), bits(&case.before), "{stage:?}");
        assert_eq!(
            (master.opened(), master.root()),
            (Opened::RolledBack, model_root(&tensors(), &case.before)),
            "{stage:?}"
        );
    }
}

fn stop_at(reached: Stage, stage: Stage) -> Result<(), StoreError> {
    match reached == stage {
        true => Err(StoreError::Step("stopped by the test".into())),
        false => Ok(()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    // After a power failure any part of the pages may be on disk.
    #[test]
    fn a_step_of_which_any_part_is_on_disk_should_be_undone(seed in 0u64..1000, kept in 0u64..=1000) {
        let case = case();
        let stopped = open(&case.path).step_through(&case.d, 0.7, &mut |reached, map| {
            for at in 0..case.before.len() {
                if ((at as u64 + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) % 1000 >= kept {
                    map.values_mut()[at] = case.before[at];
                }
            }
            stop_at(reached, Stage::Applied)
        });
        prop_assert!(stopped.is_err());
        let master = open(&case.path);
        prop_assert_eq!(bits(master.theta()), bits(&case.before));
        prop_assert_eq!(master.root(), model_root(&tensors(), &case.before));
    }
}

#[test]
fn a_damaged_journal_should_never_make_the_root_lie() {
    for stage in [None, Some(Stage::Applied)] {
        let case = case();
        let made = open(&case.path).step_through(&case.d, 0.7, &mut |reached, _| match stage {
            Some(stage) => stop_at(reached, stage),
            None => Ok(()),
        });
        assert_eq!(made.is_ok(), stage.is_none());
        drop(made);
        let undo = super::undo_path(&case.path);
        let (weights, journal) = (std::fs::read(&case.path).unwrap(), std::fs::read(&undo).unwrap());
        let cuts = [
            0,
            3,
            83,
            84,
            90,
            journal.len() / 2,
            journal.len() - 65,
            journal.len() - 1,
        ];
        let flips = [0, 5, 40, 70, 80, 84, 5000, journal.len() - 100, journal.len() - 1];
        let damages = cuts
            .iter()
            .map(|&cut| journal[..cut].to_vec())
            .chain(flips.iter().map(|&at| {
                let mut bytes = journal.clone();
                bytes[at] ^= 4;
                bytes
            }));
        for (number, damaged) in damages.enumerate() {
            std::fs::write(&case.path, &weights).unwrap();
            std::fs::write(&undo, damaged).unwrap();
            let master = open(&case.path);
            assert_ne!(master.opened(), Opened::AsLeft, "damage {number}");
            assert_eq!(master.root(), model_root(&tensors(), master.theta()), "damage {number}");
            assert_eq!(master.previous(), None, "damage {number}");
            drop(master);
            assert!(!undo.exists(), "damage {number}");
        }
    }
}

#[test]
fn a_sidecar_that_does_not_fit_should_be_built_again() {
    let case = case();
    let tree = super::tree_path(&case.path);
    let root = model_root(&tensors(), &case.before);
    let intact = std::fs::read(&tree).unwrap();
    let mut damaged = intact.clone();
    damaged[200] ^= 1;
    let others = tempfile::tempdir().unwrap();
    create(&others.path().join("theta"), &theta(99));
    let of_other_weights = std::fs::read(super::tree_path(&others.path().join("theta"))).unwrap();
    for wrong in [vec![], intact[..intact.len() - 1].to_vec(), damaged, of_other_weights] {
        std::fs::write(&tree, wrong).unwrap();
        let (mut calls, mut last) = (0, (0, 0));
        let master = Master::open(&case.path, &tensors(), &mut |done, all| {
            calls += 1;
            last = (done, all);
        })
        .unwrap();
        assert_eq!((master.opened(), master.root()), (Opened::Rehashed, root));
        assert!(
            calls >= 2 && last == (parameters() * 4, parameters() * 4),
            "{calls} {last:?}"
        );
        assert!(master.previous().is_some(), "the journal is still good");
    }
    std::fs::remove_file(&tree).unwrap();
    assert_eq!(open(&case.path).opened(), Opened::Rehashed);
    assert_eq!(open(&case.path).opened(), Opened::AsLeft);
}

#[test]
fn weights_that_another_program_wrote_to_should_be_hashed_again() {
    let case = case();
    let mut bytes = std::fs::read(&case.path).unwrap();
    bytes[4321] ^= 1;
    std::fs::write(&case.path, &bytes).unwrap();
    let master = open(&case.path);
    assert_eq!(master.opened(), Opened::Rehashed);
    assert_eq!(master.root(), root_on_disk(&case.path));
    assert_ne!(master.root(), model_root(&tensors(), &case.before));
    assert_eq!(master.previous(), None, "the journal is of other weights");

    // A whole other file, written by the plain writer.
    drop(master);
    write_theta(&case.path, &theta(5)).unwrap();
    let master = open(&case.path);
    assert_eq!(master.root(), model_root(&tensors(), &theta(5)));
}

#[cfg(unix)]
#[test]
fn a_bit_that_rotted_should_be_found_by_verify_and_by_the_next_step_near_it() {
    let case = case();
    let rot = |value: u8| {
        use std::os::unix::fs::FileExt;
        let file = std::fs::File::options().write(true).open(&case.path).unwrap();
        let changed = file.metadata().unwrap().modified().unwrap();
        file.write_all_at(&[value], 4 * 150).unwrap();
        // A disk does not tell.
        file.set_modified(changed).unwrap();
    };
    let (kept, old) = (model_root(&tensors(), &case.before), to_le_bytes(&case.before)[4 * 150]);
    open(&case.path).verify(&mut quiet).unwrap();
    rot(!old);
    let master = open(&case.path);
    assert_eq!((master.opened(), master.root()), (Opened::AsLeft, kept));
    assert!(matches!(master.verify(&mut quiet), Err(StoreError::Root { expected, .. }) if expected == kept));
    let master = open(&case.path);
    assert_eq!(master.opened(), Opened::Rehashed);
    assert_eq!(master.root(), root_on_disk(&case.path));
    drop(master);

    rot(old);
    super::file::remove(&super::tree_path(&case.path)).unwrap();
    assert_eq!(open(&case.path).root(), kept);
    rot(!old);
    let d = Sparse {
        indices: vec![151],
        values: vec![1.0],
    };
    let master = open(&case.path).step(&d, 0.5).unwrap();
    assert!(matches!(master.revert(), Err(StoreError::Root { expected, .. }) if expected == kept));
    let master = open(&case.path);
    assert_eq!(
        (master.opened(), master.root()),
        (Opened::RolledBack, root_on_disk(&case.path))
    );
}

#[test]
fn new_weights_should_not_be_touched_by_what_belonged_to_the_old_ones() {
    let case = case();
    let stopped = open(&case.path).step_through(&case.d, 0.7, &mut |r, _| stop_at(r, Stage::Applied));
    assert!(stopped.is_err());
    let master = create(&case.path, &theta(3));
    assert_eq!(master.root(), model_root(&tensors(), &theta(3)));
    drop(master);
    let master = open(&case.path);
    assert_eq!(
        (master.opened(), master.root()),
        (Opened::AsLeft, model_root(&tensors(), &theta(3)))
    );
}

/// Tells the same test, started again as a process of its own, what to do and where.
const CHILD: &str = "ALICE_STORE_TEST_CHILD";

fn this_test(name: &str) -> String {
    format!("{}::{name}", module_path!().split_once("::").unwrap().1)
}

/// Steps and reverts until it is killed.
fn step_until_killed(path: &Path, d: &Sparse) -> ! {
    let mut master = open(path);
    loop {
        master = master.step(d, 0.7).unwrap();
        master = master.revert().unwrap();
    }
}

#[test]
fn a_killed_process_should_leave_weights_before_or_after_the_step() {
    if let Ok(path) = std::env::var(CHILD) {
        step_until_killed(Path::new(&path), &second());
    }
    let case = case();
    let roots = [
        model_root(&tensors(), &case.before),
        model_root(&tensors(), &case.after),
    ];
    let (mut rolled_back, mut seen) = (0, [0; 2]);
    for round in 0..25u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                &this_test("a_killed_process_should_leave_weights_before_or_after_the_step"),
            ])
            .env(CHILD, &case.path)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // It has begun once the weights are locked; how far it comes in the time given is left to chance.
        let file = std::fs::File::open(&case.path).unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        while file.try_lock().is_ok() {
            file.unlock().unwrap();
            assert!(child.try_wait().unwrap().is_none(), "the child ended by itself");
            if Instant::now() > deadline {
                child.kill().unwrap();
                panic!("the child has not locked the weights for a minute");
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        drop(file);
        std::thread::sleep(Duration::from_micros(round * 1777));
        child.kill().unwrap();
        child.wait().unwrap();
        let master = open(&case.path);
        let which = roots.iter().position(|r| *r == master.root());
        assert!(which.is_some(), "round {round}: neither state");
        seen[which.unwrap()] += 1;
        rolled_back += u32::from(master.opened() == Opened::RolledBack);
        assert_eq!(master.root(), model_root(&tensors(), master.theta()), "round {round}");
        drop(master);
        Master::open_at(&case.path, &tensors(), &roots[0], &mut quiet).unwrap();
    }
    println!("rolled back {rolled_back} of 25, before {} after {}", seen[0], seen[1]);
}

/// A process whose files may not grow beyond a size stands for a full disk: the write fails in the middle.
#[cfg(unix)]
#[test]
fn a_full_disk_should_leave_the_weights_unchanged_and_say_so() {
    const NAME: &str = "a_full_disk_should_leave_the_weights_unchanged_and_say_so";
    if let Ok(path) = std::env::var(CHILD) {
        let error = open(Path::new(&path)).step(&second(), 0.7).unwrap_err();
        assert!(matches!(error, StoreError::Journal { .. }), "{error}");
        assert!(error.to_string().contains("the weights are unchanged"), "{error}");
        return;
    }
    let case = case();
    let root = model_root(&tensors(), &case.before);
    // The journal of this step has more than 16 KiB; what the child writes else is a sidecar's size at most.
    let shell = format!(
        "trap '' XFSZ; ulimit -f 16; exec '{}' --exact {}",
        std::env::current_exe().unwrap().display(),
        this_test(NAME)
    );
    let status = Command::new("sh")
        .args(["-c", &shell])
        .env(CHILD, &case.path)
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    assert_eq!(std::fs::read(&case.path).unwrap(), to_le_bytes(&case.before));
    let master = open(&case.path);
    assert_eq!((master.opened(), master.root()), (Opened::AsLeft, root));
    assert!(master.previous().is_some(), "the last step can still be undone");
    let left = std::fs::read_dir(case.path.parent().unwrap()).unwrap().count();
    assert_eq!(left, 3, "weights, sidecar, the last step's journal");
    assert_eq!(
        master.step(&case.d, 0.7).unwrap().root(),
        model_root(&tensors(), &case.after)
    );
}

#[test]
fn a_scratch_copy_should_be_thrown_away() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("theta");
    let master = create(&path, &theta(1))
        .step(&sparse(2, 0..parameters(), 5), 0.5)
        .unwrap();
    let before = master.theta().to_vec();
    {
        let mut scratch = master.scratch().unwrap();
        assert!(*scratch == before[..]);
        scratch.iter_mut().for_each(|value| *value += 1.0);
        assert_ne!(scratch[7], before[7]);
        assert!(master.theta() == before, "only the copy changes");
    }
    assert!(*master.scratch().unwrap() == before[..], "the next one begins again");
    let root = master.root();
    drop(master);
    assert_eq!(open(&path).opened(), Opened::AsLeft);
    assert!(read_theta(&path, parameters()).unwrap() == before && open(&path).root() == root);
}
