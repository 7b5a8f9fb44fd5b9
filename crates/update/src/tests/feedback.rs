//! Nothing is lost: what is not sent waits, what is sent and refused comes back.

use super::{header, layout, spec, values};
use crate::{
    ErrorFeedback, FeedbackError, Layout, PENDING_MAX, PendingUpdates, RESIDUAL_BLOCK, ResidualDtype, ResidualReader,
    ResidualWriter, Update, encode,
};
use proptest::prelude::*;

fn sent_of(combined: &[f32]) -> Update {
    encode(&layout(), &spec(2, 16, 600), &header(), combined).unwrap().sent
}

#[test]
fn sent_and_residual_should_make_the_combined() {
    let total = layout().total();
    let mut feedback = ErrorFeedback::new(0..total);
    let combined = feedback.combine(&values(total, 1, 0.01));
    assert_eq!(combined, values(total, 1, 0.01));
    let sent = sent_of(&combined);
    feedback.commit([1; 32], combined.clone(), &sent, 1.0);
    let mut rebuilt = feedback.residual().to_vec();
    sent.add_scaled(&mut rebuilt, 1.0);
    for (rebuilt, combined) in rebuilt.iter().zip(&combined) {
        assert!((rebuilt - combined).abs() <= 1e-9, "{rebuilt} {combined}");
    }
    assert_eq!(feedback.pending(), [[1; 32]]);
}

#[test]
fn verdicts_should_settle_or_put_back() {
    let total = layout().total();
    let combined = values(total, 2, 0.01);
    let sent = sent_of(&combined);
    let mut feedback = ErrorFeedback::new(0..total);
    feedback.commit([1; 32], combined.clone(), &sent, 0.5);
    let after_commit = feedback.residual().to_vec();
    let mut other = feedback.clone();

    feedback.accepted([1; 32]);
    assert_eq!(feedback.residual(), after_commit);
    feedback.refused([1; 32]);
    assert_eq!(feedback.residual(), after_commit, "a verdict counts once");
    assert!(feedback.pending().is_empty());

    other.refused([9; 32]);
    assert_eq!(other.residual(), after_commit);
    other.refused([1; 32]);
    for (residual, combined) in other.residual().iter().zip(&combined) {
        assert!((residual - 0.5 * combined).abs() <= 1e-9);
    }
    let again = other.combine(&vec![0.0; total]);
    assert_eq!(again, other.residual());
}

#[test]
fn pending_should_decay_with_the_residual_and_be_bounded() {
    let update = |value: f32| Update {
        header: header(),
        indices: vec![0],
        values: vec![value],
    };
    let mut feedback = ErrorFeedback::new(0..2);
    feedback.commit([1; 32], vec![8.0, 4.0], &update(8.0), 0.5);
    let combined = feedback.combine(&[0.0, 0.0]);
    assert_eq!(combined, [0.0, 2.0]);
    feedback.commit([2; 32], combined, &Update::default(), 0.5);
    feedback.refused([1; 32]);
    assert_eq!(feedback.residual(), [2.0, 1.0]);

    let mut feedback = ErrorFeedback::new(0..1);
    for n in 0..=PENDING_MAX as u8 {
        feedback.commit([n; 32], vec![0.0], &update(-1.0), 1.0);
    }
    assert_eq!(feedback.pending().len(), PENDING_MAX);
    assert_eq!(feedback.pending().first(), Some(&[1; 32]));
}

#[test]
fn values_that_are_not_finite_should_not_stay() {
    let mut feedback = ErrorFeedback::new(0..3);
    feedback.commit([1; 32], vec![f32::NAN, f32::INFINITY, 1.0], &Update::default(), 0.5);
    assert_eq!(feedback.residual(), [0.0, 0.0, 0.5]);
}

#[test]
fn a_stored_ledger_should_come_back_or_say_why_not() {
    let total = layout().total();
    let mut ledger = PendingUpdates::new(0..total);
    for n in 0..3u8 {
        ledger = ledger.committed([n; 32], &sent_of(&values(total, n.into(), 0.01)), 0.95);
    }
    ledger.refused([1; 32]);
    let bytes = ledger.to_bytes();
    assert_eq!(PendingUpdates::from_bytes(&bytes, 0..total), Ok(ledger));
    assert_eq!(
        PendingUpdates::from_bytes(&bytes, 0..total + 1),
        Err(FeedbackError::Length {
            expected: 0..total as u64 + 1,
            found: 0..total as u64
        })
    );
    let damaged = |bytes: &[u8], problem| {
        let read = PendingUpdates::from_bytes(bytes, 0..total);
        assert_eq!(read, Err(FeedbackError::Damaged(problem)));
    };
    for cut in [0, 10, 31, 32, 40, bytes.len() - 1] {
        damaged(&bytes[..cut], "too short");
    }
    damaged(&[bytes.as_slice(), &[0]].concat(), "too long");
    let mut flipped = bytes.clone();
    flipped[40] ^= 1;
    damaged(&flipped, "checksum does not match");
}

#[test]
fn a_constant_gradient_should_be_sent_completely_over_time() {
    // With a residual that does not decay, what was sent over many rounds approaches rounds · d in every coordinate.
    let total = layout().total();
    let d = values(total, 6, 0.01);
    let mut feedback = ErrorFeedback::new(0..total);
    let mut arrived = vec![0.0f32; total];
    let rounds = 200;
    for round in 0..rounds {
        let combined = feedback.combine(&d);
        let sent = sent_of(&combined);
        sent.add_scaled(&mut arrived, 1.0);
        feedback.commit([round as u8; 32], combined, &sent, 1.0);
        feedback.accepted([round as u8; 32]);
    }
    let goal: f64 = d.iter().map(|v| f64::from(*v * rounds as f32).powi(2)).sum();
    let miss: f64 = d
        .iter()
        .zip(&arrived)
        .map(|(v, a)| f64::from(v * rounds as f32 - a).powi(2))
        .sum();
    assert!(miss < 0.02 * goal, "{miss} of {goal}");
}

/// Error feedback as a stream, with the residual in pieces on a "disk".
struct Disk {
    ledger: PendingUpdates,
    residual: Option<Vec<u8>>,
    precision: ResidualDtype,
}

impl Disk {
    fn new(covered: std::ops::Range<usize>, precision: ResidualDtype) -> Self {
        Self {
            ledger: PendingUpdates::new(covered),
            residual: None,
            precision,
        }
    }

    fn combined(&self, d: &[f32]) -> Vec<f32> {
        let mut all = Vec::new();
        let take = |start: u64, block: &mut [f32]| -> Result<(), FeedbackError> {
            assert_eq!(start - self.ledger.covered().start, all.len() as u64);
            all.extend_from_slice(block);
            Ok(())
        };
        self.ledger
            .combine(self.residual.as_deref(), self.source(d), take)
            .unwrap();
        all
    }

    fn source(&self, d: &[f32]) -> impl FnMut(u64, &mut [f32]) -> Result<(), FeedbackError> {
        let first = self.ledger.covered().start;
        move |start, block| {
            let from = (start - first) as usize;
            block.copy_from_slice(&d[from..from + block.len()]);
            Ok(())
        }
    }

    fn store<W: std::io::Write>(
        &self,
        next: &PendingUpdates,
        d: &[f32],
        sent: &Update,
        decay: f32,
        to: W,
    ) -> Result<W, FeedbackError> {
        let stored = self.residual.as_deref();
        self.ledger
            .store(next, stored, self.source(d), (sent, decay), self.precision, to)
    }

    fn commit(&mut self, id: [u8; 32], d: &[f32], sent: &Update, decay: f32) {
        let next = self.ledger.committed(id, sent, decay);
        self.residual = Some(self.store(&next, d, sent, decay, Vec::new()).unwrap());
        // Through the disk, as the miner does.
        let covered = next.covered();
        self.ledger =
            PendingUpdates::from_bytes(&next.to_bytes(), covered.start as usize..covered.end as usize).unwrap();
    }
}

/// More than one block, so that their borders are crossed.
const LONG: usize = RESIDUAL_BLOCK + 1000;

#[test]
fn the_stream_should_be_the_memorys_bit_for_bit() {
    let mut disk = Disk::new(0..LONG, ResidualDtype::F32);
    let mut memory = ErrorFeedback::new(0..LONG);
    let layout = Layout::new(&[1000, LONG as u64 - 1000], 4096);
    let mut spec = spec(2, 64, 9000);
    spec.chunk = 4096;
    let decay = 0.9;
    for round in 0..5u8 {
        let d = values(LONG, round.into(), 0.01);
        let combined = memory.combine(&d);
        assert_eq!(disk.combined(&d), combined, "round {round}");
        let sent = encode(&layout, &spec, &header(), &combined).unwrap().sent;
        assert!(sent.indices.iter().any(|index| *index > RESIDUAL_BLOCK as u64));
        memory.commit([round; 32], combined, &sent, decay);
        disk.commit([round; 32], &d, &sent, decay);
        assert_eq!(disk.ledger.pending(), memory.pending());
        // Round 1 is accepted, rounds 0 and 2 come back late, the others wait.
        match round {
            1 => (memory.accepted([1; 32]), disk.ledger.accepted([1; 32])),
            2 => (memory.refused([0; 32]), disk.ledger.refused([0; 32])),
            3 => (memory.refused([2; 32]), disk.ledger.refused([2; 32])),
            _ => ((), ()),
        };
        assert_eq!(disk.combined(&vec![0.0; LONG]), memory.residual());
    }
    assert_eq!(disk.ledger.pending(), [[3; 32], [4; 32]]);
}

#[test]
fn a_residual_in_bf16_should_stay_near_and_be_repeatable() {
    let covered = 50..50 + LONG;
    let d = values(LONG, 4, 0.01);
    let sent = Update {
        header: header(),
        indices: vec![50, 52, (50 + RESIDUAL_BLOCK) as u64],
        values: vec![d[0], d[2], d[RESIDUAL_BLOCK]],
    };
    let [exact, rounded, again] = [ResidualDtype::F32, ResidualDtype::Bf16, ResidualDtype::Bf16].map(|precision| {
        let mut disk = Disk::new(covered.clone(), precision);
        disk.commit([1; 32], &d, &sent, 0.5);
        disk
    });
    assert_eq!(rounded.residual, again.residual);
    let size = |disk: &Disk| disk.residual.as_ref().unwrap().len();
    assert_eq!(size(&exact) - size(&rounded), 2 * LONG);
    let zeros = vec![0.0; LONG];
    let (exact, rounded) = (exact.combined(&zeros), rounded.combined(&zeros));
    assert_eq!(
        (exact[0], exact[1], exact[2], exact[RESIDUAL_BLOCK]),
        (0.0, 0.5 * d[1], 0.0, 0.0)
    );
    let (mut bias, mut size) = (0.0f64, 0.0f64);
    for (exact, rounded) in exact.iter().zip(&rounded) {
        // bfloat16 has 8 bits of precision.
        assert!((exact - rounded).abs() <= exact.abs() / 128.0);
        bias += f64::from(rounded - exact);
        size += f64::from(exact.abs());
    }
    // 263,144 errors of up to 1/128 each average out: about 1/128 / √(3 · 263,144) of the mean magnitude.
    assert!(bias.abs() < 1e-4 * size, "{bias} of {size}");
}

/// A disk with room for this many bytes.
struct Full(usize);

impl std::io::Write for Full {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let taken = bytes.len().min(self.0);
        self.0 -= taken;
        if taken == 0 && !bytes.is_empty() {
            return Err(std::io::Error::from(std::io::ErrorKind::StorageFull));
        }
        Ok(taken)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_full_disk_should_leave_the_old_state() {
    let mut disk = Disk::new(0..LONG, ResidualDtype::F32);
    let d = values(LONG, 7, 0.01);
    disk.commit([1; 32], &d, &Update::default(), 0.9);
    let (ledger, residual) = (disk.ledger.clone(), disk.residual.clone());
    let before = disk.combined(&d);
    let next = disk.ledger.committed([2; 32], &Update::default(), 0.9);
    let whole = disk.store(&next, &d, &Update::default(), 0.9, Vec::new()).unwrap();
    for room in [0, 10, 29, 30, 1 << 20, whole.len() - 1] {
        let error = disk
            .store(&next, &d, &Update::default(), 0.9, Full(room))
            .err()
            .unwrap();
        assert!(
            matches!(
                &error,
                FeedbackError::Store {
                    kind: std::io::ErrorKind::StorageFull,
                    ..
                }
            ),
            "{room}: {error}"
        );
        assert!(error.to_string().contains("make room on the disk"));
        assert_eq!((&disk.ledger, &disk.residual), (&ledger, &residual));
        assert_eq!(disk.combined(&d), before);
    }
    assert!(
        disk.store(&next, &d, &Update::default(), 0.9, Full(whole.len()))
            .is_ok()
    );
}

#[test]
fn a_crash_should_leave_the_old_or_the_new_state() {
    let mut disk = Disk::new(0..LONG, ResidualDtype::Bf16);
    let d = values(LONG, 7, 0.01);
    disk.commit([1; 32], &d, &Update::default(), 0.9);
    let (old, old_residual) = (disk.ledger.clone(), disk.residual.clone().unwrap());
    let next = old.committed([2; 32], &Update::default(), 0.9);
    let new_residual = disk.store(&next, &d, &Update::default(), 0.9, Vec::new()).unwrap();
    let read = |ledger: &PendingUpdates, residual: Option<&[u8]>| {
        ledger.combine(residual, |_, _| Ok(()), |_, _| Ok::<(), FeedbackError>(()))
    };
    // The ledger's rename is the instant. Whatever is there of the new residual before, the old pair is whole; a ledger
    // never reads another generation's residual, half of one, or none.
    assert_eq!(read(&old, Some(&old_residual)), Ok(()));
    assert_eq!(read(&next, Some(&new_residual)), Ok(()));
    let stranger = FeedbackError::Damaged("the residual is not the one that the ledger names");
    assert_eq!(read(&old, Some(&new_residual)), Err(stranger.clone()));
    assert_eq!(read(&next, Some(&old_residual)), Err(stranger));
    assert_eq!(read(&next, None), Err(FeedbackError::Missing { generation: 2 }));
    for cut in [0, 5, 28, 29, 1000, RESIDUAL_BLOCK * 2 + 29, new_residual.len() - 1] {
        assert_eq!(
            read(&next, Some(&new_residual[..cut])),
            Err(FeedbackError::Damaged("too short")),
            "{cut}"
        );
    }
    let longer = [new_residual.as_slice(), &[0]].concat();
    assert_eq!(read(&next, Some(&longer)), Err(FeedbackError::Damaged("too long")));
    for at in [29, 1000, RESIDUAL_BLOCK * 2 + 40, new_residual.len() - 1] {
        let mut flipped = new_residual.clone();
        flipped[at] ^= 1;
        assert_eq!(
            read(&next, Some(&flipped)),
            Err(FeedbackError::Damaged("checksum does not match")),
            "{at}"
        );
    }
    let mut version = new_residual.clone();
    version[3] = b'2';
    assert_eq!(
        read(&next, Some(&version)),
        Err(FeedbackError::Damaged("not of this program, or of another version"))
    );
}

#[test]
fn a_residual_should_have_its_length() {
    let mut writer = ResidualWriter::create(Vec::new(), 5..15, 1, ResidualDtype::F32).unwrap();
    writer.push(&[1.0; 9]).unwrap();
    let values = |found| FeedbackError::Values { expected: 15, found };
    assert_eq!(writer.push(&[1.0; 2]), Err(values(16)));
    assert_eq!(writer.finish().err(), Some(values(14)));
    let mut writer = ResidualWriter::create(Vec::new(), 5..15, 1, ResidualDtype::F32).unwrap();
    writer.push(&[f32::NAN; 10]).unwrap();
    let bytes = writer.finish().unwrap();
    let mut reader = ResidualReader::open(Some(bytes.as_slice()), 5..15, 1).unwrap();
    let mut block = Vec::new();
    assert_eq!(reader.next_block(&mut block), Ok(Some(5)));
    assert_eq!(block, [0.0; 10]);
    assert_eq!(reader.next_block(&mut block), Ok(None));
    // Nothing is covered: nothing is stored but the head.
    let empty = ResidualWriter::create(Vec::new(), 7..7, 3, ResidualDtype::Bf16)
        .unwrap()
        .finish()
        .unwrap();
    let mut reader = ResidualReader::open(Some(empty.as_slice()), 7..7, 3).unwrap();
    assert_eq!(reader.next_block(&mut block), Ok(None));
}

proptest! {
    #[test]
    fn random_bytes_should_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(PendingUpdates::from_bytes(&bytes, 0..10).is_err());
        let mut signed = [b"ALF2".as_slice(), &0u64.to_le_bytes(), &10u64.to_le_bytes(), &bytes].concat();
        let checksum = alice_primitives::tagged_hash("alice/feedback/v2", &[&signed]);
        signed.extend_from_slice(&checksum);
        let _ = PendingUpdates::from_bytes(&signed, 0..10);
    }
}
