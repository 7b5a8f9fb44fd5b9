//! The schedule of ALICE: a pure integer function of the epoch number (docs/spec/emission.md).
//!
//! `C(n)` is what may have been issued before epoch `n`; an epoch's budget is the difference `C(n+1) − C(n)`. So the
//! total of an era is exact, and budgets inside an era differ by at most one planck.

/// One ALICE in planck.
pub const UNIT: u128 = 1_000_000_000_000;
/// The schedule never exceeds this, planck.
pub const CAP: u128 = 21_000_000 * UNIT;
/// Epochs in an era: two years of one-hour epochs (600 blocks of 6 s).
pub const EPOCHS_PER_ERA: u32 = 17_520;
/// What the first era issues, planck.
pub const ERA_BUDGET_FIRST: u128 = 10_500_000 * UNIT;
/// What the whole schedule issues, planck: the cap less what halving loses to rounding, one planck for every set bit
/// of [`ERA_BUDGET_FIRST`].
pub const TOTAL: u128 = CAP - ERA_BUDGET_FIRST.count_ones() as u128;

/// Era of an epoch: the number of halvings before it.
pub const fn era(epoch: u32) -> u32 {
    epoch / EPOCHS_PER_ERA
}

/// What era `era` issues, planck: `E_0 >> era`.
pub const fn era_budget(era: u32) -> u128 {
    if era >= u128::BITS { 0 } else { ERA_BUDGET_FIRST >> era }
}

/// `C(n)`: what the schedule allows to be issued for all epochs before `epoch`, planck.
pub const fn cumulative(epoch: u32) -> u128 {
    let era = era(epoch);
    let position = (epoch % EPOCHS_PER_ERA) as u128;
    // Sum of the eras before: at most 64 terms are not zero.
    let mut sum = 0;
    let mut i = 0;
    while i < era && i < 64 {
        sum += era_budget(i);
        i += 1;
    }
    sum + era_budget(era) * position / EPOCHS_PER_ERA as u128
}

/// What epoch `epoch` may issue, planck: `C(n+1) − C(n)`.
pub const fn budget(epoch: u32) -> u128 {
    match epoch.checked_add(1) {
        Some(next) => cumulative(next) - cumulative(epoch),
        None => 0,
    }
}

/// One contribution's share of a budget, planck: `⌊budget · score / total⌋`; zero where there is no score at all.
///
/// Never overflows for budgets of this schedule: `budget < 2^50` and `score < 2^64`. A larger budget saturates to
/// zero rather than to a wrong amount.
pub const fn share(budget: u128, score: u64, total: u128) -> u128 {
    if total == 0 || score as u128 > total {
        return 0;
    }
    match budget.checked_mul(score as u128) {
        Some(product) => product / total,
        None => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn schedule_should_issue_the_total_over_all_epochs() {
        // Exhaustive: every epoch until the last planck.
        let (mut sum, mut era_sum) = (0u128, 0u128);
        for n in 0..64 * EPOCHS_PER_ERA {
            assert_eq!(cumulative(n), sum, "epoch {n}");
            let b = budget(n);
            let floor = era_budget(era(n)) / EPOCHS_PER_ERA as u128;
            assert!(b == floor || b == floor + 1, "epoch {n}: budget {b}");
            sum += b;
            era_sum += b;
            if (n + 1) % EPOCHS_PER_ERA == 0 {
                assert_eq!(era_sum, era_budget(era(n)));
                era_sum = 0;
            }
        }
        assert_eq!(sum, TOTAL);
        assert_eq!(TOTAL, CAP - 29);
        assert_eq!(budget(64 * EPOCHS_PER_ERA), 0);
        assert_eq!(budget(u32::MAX), 0);
        assert_eq!(budget(0), 599_315_068_493_150);
    }

    proptest! {
        #[test]
        fn shares_should_never_exceed_the_budget(
            epoch in 0u32..10 * EPOCHS_PER_ERA,
            scores in proptest::collection::vec(any::<u64>(), 1..200),
        ) {
            let total: u128 = scores.iter().map(|s| *s as u128).sum();
            let budget = budget(epoch);
            let paid: u128 = scores.iter().map(|s| share(budget, *s, total)).sum();
            prop_assert!(paid <= budget);
            prop_assert!(total == 0 || budget - paid < scores.len() as u128);
        }
    }
}
