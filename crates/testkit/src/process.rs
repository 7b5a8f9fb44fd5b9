//! Programs that a test starts, and waiting with a deadline.

use std::{
    io::{BufRead, BufReader, Read},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Pause between two polls: short against what is waited for, long against the cost of asking.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Polls until `ask` has an answer.
///
/// # Panics
/// If there is none within `patience`; `what` names the thing in the message.
pub fn until<T>(what: &str, patience: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "{what} did not happen within {patience:?}");
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// A port on loopback that is free now. Another process may take it before the test does: a program that can listen on
/// port 0 and report its address is better.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    listener.local_addr().expect("a listener has an address").port()
}

/// A running program whose output is collected, killed when dropped.
///
/// ```
/// # use std::{process::Command, time::Duration};
/// let mut process = alice_testkit::Process::start(Command::new("sh").args(["-c", "echo listening on 7; sleep 60"]));
/// let line = process.wait_for_line("listening on", Duration::from_secs(10));
/// assert_eq!(line, "listening on 7");
/// ```
#[derive(Debug)]
pub struct Process {
    child: Child,
    /// Lines of standard output and standard error as they came.
    log: Arc<Mutex<Vec<String>>>,
    /// Lines that earlier waits have passed.
    lines_seen: usize,
}

impl Process {
    /// Starts a program without standard input. Its output is collected from the start, so it never blocks on a full
    /// pipe.
    ///
    /// # Panics
    /// If the program cannot be started.
    pub fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
        let log = Arc::new(Mutex::new(Vec::new()));
        let streams = [
            child
                .stdout
                .take()
                .map(|stream| Box::new(stream) as Box<dyn Read + Send>),
            child
                .stderr
                .take()
                .map(|stream| Box::new(stream) as Box<dyn Read + Send>),
        ];
        for stream in streams.into_iter().flatten() {
            let log = Arc::clone(&log);
            // Ends with the stream, which ends with the program and its children.
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                let mut reader = BufReader::new(stream);
                while reader.read_until(b'\n', &mut bytes).is_ok_and(|read| read > 0) {
                    let line = String::from_utf8_lossy(&bytes).trim_end().to_owned();
                    log.lock().unwrap_or_else(PoisonError::into_inner).push(line);
                    bytes.clear();
                }
            });
        }
        Self {
            child,
            log,
            lines_seen: 0,
        }
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Everything it has written, standard output and standard error together.
    pub fn log(&self) -> String {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).join("\n")
    }

    /// Waits for the next line that contains `part`, and returns it. Lines before it are passed over: a second call
    /// waits for a later line.
    ///
    /// # Panics
    /// With the log, if the program ends before or `patience` is over.
    pub fn wait_for_line(&mut self, part: &str, patience: Duration) -> String {
        let (log, from) = (Arc::clone(&self.log), self.lines_seen);
        let found = || {
            let lines = log.lock().unwrap_or_else(PoisonError::into_inner);
            let position = lines.iter().skip(from).position(|line| line.contains(part))?;
            lines.get(from + position).map(|line| (from + position, line.clone()))
        };
        let (position, line) = self.wait_until(&format!("a line with '{part}'"), patience, found);
        self.lines_seen = position + 1;
        line
    }

    /// Waits until something accepts connections on `address`.
    ///
    /// # Panics
    /// With the log, if the program ends before or `patience` is over.
    pub fn wait_for_port(&mut self, address: SocketAddr, patience: Duration) {
        self.wait_until(&format!("a listener on {address}"), patience, || {
            TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok()
        });
    }

    /// Polls until `ask` has an answer.
    ///
    /// # Panics
    /// With the log, if the program ends before or `patience` is over.
    pub fn wait_until<T>(&mut self, what: &str, patience: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
        let deadline = Instant::now() + patience;
        loop {
            // Before asking: what a program did just before its end still counts.
            let ended = self.child.try_wait().expect("a child can be waited for");
            if let Some(answer) = ask() {
                return answer;
            }
            if let Some(status) = ended {
                // The threads that read its output may be a moment behind.
                std::thread::sleep(POLL_INTERVAL);
                if let Some(answer) = ask() {
                    return answer;
                }
                panic!("the program ended with {status} before {what}:\n{}", self.log());
            }
            assert!(
                Instant::now() < deadline,
                "{what} did not happen within {patience:?}:\n{}",
                self.log()
            );
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// Sends a signal by its name without `SIG`, such as `TERM`.
    ///
    /// # Panics
    /// If there is no `kill` program, or the program has ended and was waited for.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args(["-s", name, &self.id().to_string()])
            .status()
            .expect("a POSIX system has the program 'kill'");
        assert!(status.success(), "the process {} takes no signal {name}", self.id());
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// With the log, if it still runs after `patience`.
    pub fn wait(&mut self, patience: Duration) -> ExitStatus {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                return status;
            }
            assert!(
                Instant::now() < deadline,
                "the program still runs after {patience:?}:\n{}",
                self.log()
            );
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// Kills it at once, as a crash would, and waits for its end.
    pub fn kill(&mut self) {
        // Fails only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn shell(script: &str) -> Process {
        Process::start(Command::new("sh").args(["-c", script]))
    }

    #[test]
    fn lines_should_be_waited_for_in_order() {
        let mut process = shell("echo one 1; echo two >&2; sleep 0.2; echo one 2; exec sleep 60");
        assert_eq!(process.wait_for_line("one", PATIENCE), "one 1");
        assert_eq!(process.wait_for_line("one", PATIENCE), "one 2");
        assert!(process.log().contains("two"));
    }

    #[test]
    #[should_panic(expected = "before a line with 'never'")]
    fn wait_for_line_should_panic_with_the_log_when_the_program_ends() {
        shell("echo gone; exit 3").wait_for_line("never", PATIENCE);
    }

    #[test]
    fn a_signal_should_end_the_program() {
        let mut process = shell("echo ready; exec sleep 60");
        process.wait_for_line("ready", PATIENCE);
        process.signal("TERM");
        assert!(!process.wait(PATIENCE).success());
    }

    #[test]
    fn a_port_should_be_waited_for() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut process = shell("exec sleep 60");
        process.wait_for_port(listener.local_addr().unwrap(), PATIENCE);
        assert_ne!(free_port(), 0);
    }

    #[test]
    #[should_panic(expected = "nothing did not happen within")]
    fn until_should_panic_when_the_patience_is_over() {
        until::<()>("nothing", Duration::from_millis(30), || None);
    }
}
