//! The limit of malformed lines: a few bad records are left out and counted, a wrong key or a damaged file stops the
//! build.

use crate::CorpusError;

/// Malformed lines of a source before its share is judged while it is read: a wrong key shows at once in a file of any
/// size, and a few bad records at its start do not weigh as much as they seem to.
const EARLY: u64 = 100;

/// Malformed lines of a source.
pub(crate) struct Found<'a> {
    pub(crate) malformed: u64,
    /// Documents read, malformed lines included.
    pub(crate) documents: u64,
    /// The first malformed line and its problem.
    pub(crate) first: Option<&'a str>,
}

/// A check of a source's malformed lines against the maximum in thousandths.
pub(crate) type Check = fn(&str, &Found<'_>, u32) -> Result<(), CorpusError>;

/// The check after each malformed line.
pub(crate) fn check_early(source: &str, found: &Found<'_>, permille_max: u32) -> Result<(), CorpusError> {
    match found.malformed > EARLY || permille_max == 0 {
        true => check_source(source, found, permille_max),
        false => Ok(()),
    }
}

/// The check at the end of a source. One malformed line is always left out, unless the maximum is 0; a source of which
/// every line is malformed has a wrong key.
pub(crate) fn check_source(source: &str, found: &Found<'_>, permille_max: u32) -> Result<(), CorpusError> {
    // Rounded down: the maximum is a promise.
    let share = u128::from(found.documents) * u128::from(permille_max) / 1000;
    let malformed_max = if permille_max == 0 { 0 } else { share.max(1) };
    let none_is_well_formed = found.malformed > 0 && found.malformed == found.documents;
    if u128::from(found.malformed) <= malformed_max && !none_is_well_formed {
        return Ok(());
    }
    Err(CorpusError::Malformed {
        name: source.to_owned(),
        malformed: found.malformed,
        documents: found.documents,
        permille: permille_max,
        first: found.first.unwrap_or_default().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_lines_should_pass_and_a_wrong_key_should_not() {
        let found = |malformed, documents| Found {
            malformed,
            documents,
            first: Some("x.jsonl line 7: bad"),
        };
        for (malformed, documents, permille, at_end) in [
            (0, 0, 10, true),
            (0, 5, 0, true),
            (1, 301, 10, true),
            (1, 2, 10, true),
            (2, 2, 10, false),
            (1, 1, 10, false),
            (1, 1000, 0, false),
            (2, 100, 10, false),
            (10, 1000, 10, true),
            (11, 1000, 10, false),
            (999, 1000, 1000, true),
            (u64::MAX / 2, u64::MAX, 500, true),
        ] {
            let checked = check_source("a", &found(malformed, documents), permille);
            assert_eq!(
                checked.is_ok(),
                at_end,
                "{malformed} of {documents}, {permille} permille"
            );
        }
        check_early("a", &found(100, 100), 10).unwrap();
        let message = check_early("a", &found(101, 101), 10).unwrap_err().to_string();
        assert!(
            message.contains("source 'a': 101 of 101") && message.contains("the first: x.jsonl line 7: bad"),
            "{message}"
        );
        check_early("a", &found(101, 20_000), 10).unwrap();
        assert!(check_early("a", &found(1, 20_000), 0).is_err());
    }
}
