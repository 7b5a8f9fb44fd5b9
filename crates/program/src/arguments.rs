//! Command lines, with environment variables as clap's `env` defines them for single flags.

use clap::{Arg, Command, Parser, builder::Resettable};
use std::ffi::OsStr;

/// Parses the command line; ends the process with help or usage errors as clap does.
///
/// An empty environment variable counts as unset (`ALICE_CHAIN= alice-miner …`): service managers and compose files
/// write empty variables for what the user left out, and clap alone would take them for values.
pub fn parse<T: Parser>() -> T {
    let matches = without_empty_variables(T::command()).get_matches();
    // The matches come from T's own command, so this fails for no command line that clap accepts.
    T::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
}

/// The command with its flags detached from those environment variables that are empty, subcommands included.
pub fn without_empty_variables(command: Command) -> Command {
    without_variables(command, &|name| {
        std::env::var_os(name).is_some_and(|value| value.is_empty())
    })
}

fn without_variables(command: Command, is_empty: &dyn Fn(&OsStr) -> bool) -> Command {
    command
        .mut_args(|arg: Arg| match arg.get_env().is_some_and(is_empty) {
            true => arg.env(Resettable::Reset),
            false => arg,
        })
        .mut_subcommands(|command| without_variables(command, is_empty))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cargo sets this for every test, and its value is no number.
    const VARIABLE: &str = "CARGO_PKG_NAME";

    #[derive(Debug, clap::Parser)]
    struct Program {
        #[arg(long, env = VARIABLE)]
        number: Option<u16>,
        #[command(subcommand)]
        command: Option<Sub>,
    }

    #[derive(Debug, clap::Subcommand)]
    enum Sub {
        Work {
            #[arg(long, env = VARIABLE)]
            number: Option<u16>,
        },
    }

    fn parse(arguments: &[&str], empty: bool) -> Result<Program, clap::Error> {
        let command = without_variables(<Program as clap::CommandFactory>::command(), &|name| {
            empty && name == VARIABLE
        });
        let matches = command.try_get_matches_from(arguments)?;
        <Program as clap::FromArgMatches>::from_arg_matches(&matches)
    }

    #[test]
    fn an_empty_variable_should_count_as_unset_in_every_command() {
        assert!(
            parse(&["program"], false).is_err(),
            "a value that is no number is refused"
        );
        assert_eq!(parse(&["program"], true).unwrap().number, None);
        assert_eq!(parse(&["program", "--number", "3"], true).unwrap().number, Some(3));
        let work = parse(&["program", "work"], true).unwrap();
        assert!(matches!(work.command, Some(Sub::Work { number: None })));
        assert!(parse(&["program", "work"], false).is_err());
    }
}
