//! Slow readers: a socket that ends its connection if the client takes too little while the server waits for it.

use super::{bare::complete_answer, connections::Limits, places::Connection};
use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep, sleep_until},
};

/// Judges how fast a client reads. Only time in which the server is blocked on the client counts.
#[derive(Debug)]
struct Pace {
    window: Duration,
    bytes_min: u64,
    /// Blocked in this window before `blocked_since`.
    blocked: Duration,
    /// Written in this window.
    written: u64,
    blocked_since: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Pace {
    fn new(limits: &Limits) -> Self {
        Self {
            window: limits.stall_window,
            bytes_min: limits.stall_bytes_min,
            blocked: Duration::ZERO,
            written: 0,
            blocked_since: None,
            timer: None,
        }
    }

    /// Passes on the result of a write, or an error if the client is too slow.
    fn judge(&mut self, context: &mut Context<'_>, write: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match write {
            Poll::Ready(Ok(bytes)) => {
                if let Some(since) = self.blocked_since.take() {
                    self.blocked += since.elapsed();
                }
                self.written = self.written.saturating_add(bytes as u64);
                if self.blocked >= self.window {
                    self.end_window()?;
                }
                Poll::Ready(Ok(bytes))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => loop {
                if self.blocked.is_zero() && self.blocked_since.is_none() {
                    // Bytes that went into the socket's buffer before do not show that anybody reads.
                    self.written = 0;
                }
                let since = *self.blocked_since.get_or_insert_with(Instant::now);
                let end = since + self.window.saturating_sub(self.blocked);
                let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(end)));
                if timer.deadline() != end {
                    timer.as_mut().reset(end);
                }
                ready!(timer.as_mut().poll(context));
                self.end_window()?;
            },
        }
    }

    fn end_window(&mut self) -> io::Result<()> {
        if self.written < self.bytes_min {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the client reads too slowly"));
        }
        (self.blocked, self.written, self.blocked_since) = (Duration::ZERO, 0, None);
        Ok(())
    }
}

/// A client's socket: notes when it was last active, ends it if the client reads too slowly, and gives the bare answers
/// of the HTTP parser the body that every refusal of this API has.
#[derive(Debug)]
pub struct Paced {
    stream: TcpStream,
    connection: Arc<Connection>,
    pace: Pace,
    /// The answer that is written instead of a bare one, and how much of it was written.
    replacement: Option<(Vec<u8>, usize)>,
}

impl Paced {
    /// Judges the client of `stream` by `limits`.
    pub fn new(stream: TcpStream, connection: Arc<Connection>, limits: Limits) -> Self {
        Self {
            stream,
            connection,
            pace: Pace::new(&limits),
            replacement: None,
        }
    }

    fn judge(&mut self, context: &mut Context<'_>, write: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if matches!(write, Poll::Ready(Ok(_))) {
            self.connection.touch();
        }
        self.pace.judge(context, write)
    }

    /// Writes the complete form of a bare answer in its place; `None` if `first` is no bare answer.
    fn poll_replace(&mut self, context: &mut Context<'_>, first: &[u8]) -> Option<Poll<io::Result<usize>>> {
        if self.replacement.is_none() {
            self.replacement = Some((complete_answer(first)?, 0));
        }
        while let Some((answer, written)) = &mut self.replacement
            && let Some(rest) = answer.get(*written..).filter(|rest| !rest.is_empty())
        {
            let write = Pin::new(&mut self.stream).poll_write(context, rest);
            if let Poll::Ready(Ok(bytes)) = write {
                *written += bytes;
            }
            match self.judge(context, write) {
                Poll::Ready(Ok(_)) => {}
                other => return Some(other),
            }
        }
        self.replacement = None;
        Some(Poll::Ready(Ok(first.len())))
    }
}

impl AsyncRead for Paced {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(context, out);
        if read.is_ready() {
            self.connection.touch();
        }
        read
    }
}

impl AsyncWrite for Paced {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if let Some(replaced) = self.poll_replace(context, bytes) {
            return replaced;
        }
        let write = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.judge(context, write)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // A bare answer has no body, so it is one part.
        if let [only] = parts
            && let Some(replaced) = self.poll_replace(context, only)
        {
            return replaced;
        }
        let write = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.judge(context, write)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
