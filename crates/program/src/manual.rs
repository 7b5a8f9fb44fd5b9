//! Shell completions and man pages, generated from the definitions of the flags.

use clap::{Args, Command, ValueEnum};
use std::{
    io,
    path::{Path, PathBuf},
};

/// `completions`: prints a completion script.
#[derive(Clone, Debug, Args)]
pub struct CompletionsArgs {
    /// Shell that the script is for
    pub shell: Shell,
}

/// Shells with completions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// GNU Bash
    Bash,
    /// Z shell
    Zsh,
    /// fish
    Fish,
    /// Elvish
    Elvish,
    /// PowerShell
    Powershell,
}

/// `man`: writes one page for each command.
#[derive(Clone, Debug, Args)]
pub struct ManArgs {
    /// Directory for the pages; made if it is missing
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}

/// The completion script of a program.
pub fn completions(mut command: Command, shell: Shell) -> Vec<u8> {
    // The name of the command and not of the file that runs: completions are installed for the former.
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    let generator = match shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
        Shell::Elvish => clap_complete::Shell::Elvish,
        Shell::Powershell => clap_complete::Shell::PowerShell,
    };
    clap_complete::generate(generator, &mut command, name, &mut script);
    script
}

/// Writes `program.1`, `program-command.1`, … and returns how many pages there are.
///
/// # Errors
/// The directory cannot be made, or a page cannot be written.
pub fn write_man_pages(command: Command, directory: &Path) -> io::Result<usize> {
    std::fs::create_dir_all(directory)?;
    clap_mangen::generate_to(command, directory)?;
    Ok(std::fs::read_dir(directory)?.count())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program() -> Command {
        Command::new("alice-test").subcommand(Command::new("work").about("Works"))
    }

    #[test]
    fn completions_should_name_every_command() {
        for shell in Shell::value_variants() {
            let script = String::from_utf8(completions(program(), *shell)).unwrap();
            assert!(script.contains("work"), "{shell:?}: {script}");
        }
    }

    #[test]
    fn man_pages_should_be_one_for_each_command() {
        let dir = tempfile::tempdir().unwrap();
        write_man_pages(program(), &dir.path().join("man")).unwrap();
        let page = std::fs::read_to_string(dir.path().join("man/alice-test-work.1")).unwrap();
        assert!(page.contains("Works"), "{page}");
    }
}
