//! Nodes as processes, and questions to their RPC.
// Each test binary uses a part of it.
#![allow(dead_code)]

use alice_runtime::UncheckedExtrinsic;
use alice_testkit::{free_port, Process};
use codec::{Decode, Encode};
use serde_json::{json, Value};
use std::{
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    process::Command,
    time::Duration,
};

/// The program under test.
pub const NODE: &str = env!("CARGO_BIN_EXE_alice-node");
/// Longest wait for anything that a node does at its start. Two nodes of an unoptimised build on two busy cores need
/// up to half of it.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// Longest wait for an answer of its RPC.
const RPC_TIMEOUT: Duration = Duration::from_secs(20);

/// A node that ends with the test.
pub struct Node {
    pub process: Process,
    pub rpc_port: u16,
}

impl Node {
    /// Starts a node on loopback that finds no others by itself.
    pub fn start(chain: &str, base_path: &Path, arguments: &[&str]) -> Self {
        let rpc_port = free_port();
        let process = Process::start(
            Command::new(NODE)
                .args(["--chain", chain, "--rpc-port", &rpc_port.to_string(), "--base-path"])
                .arg(base_path)
                .args(["--no-prometheus", "--no-mdns"])
                .args(arguments),
        );
        Self { process, rpc_port }
    }

    /// A node that is reached by nobody, for tests of one.
    pub fn start_alone(chain: &str, base_path: &Path, arguments: &[&str]) -> Self {
        let port = free_port();
        let listen = format!("/ip4/127.0.0.1/tcp/{port}");
        let arguments = [&["--listen-addr", listen.as_str()], arguments].concat();
        Self::start(chain, base_path, &arguments)
    }

    /// Waits until its RPC answers.
    pub fn wait_for_rpc(&mut self) {
        let port = self.rpc_port;
        self.process.wait_until("an answer of the RPC", PATIENCE, || {
            try_call(port, "system_health", &json!([])).ok()
        });
    }

    pub fn try_call(&self, method: &str, params: &Value) -> std::io::Result<Value> {
        try_call(self.rpc_port, method, params)
    }

    pub fn call(&self, method: &str, params: Value) -> Value {
        let answer = self.try_call(method, &params).unwrap();
        assert!(answer.get("error").is_none(), "{method}: {answer}");
        answer["result"].clone()
    }

    /// Number of a block; of the best without a hash.
    pub fn number(&self, hash: Option<&Value>) -> u32 {
        let header = self.call("chain_getHeader", json!(hash.into_iter().collect::<Vec<_>>()));
        u32::from_str_radix(header["number"].as_str().unwrap().trim_start_matches("0x"), 16).unwrap()
    }

    /// Number of the last finalised block.
    pub fn finalised(&self) -> u32 {
        let hash = self.call("chain_getFinalizedHead", json!([]));
        self.number(Some(&hash))
    }

    /// A value in the best block's state.
    pub fn storage<T: Decode>(&self, key: &[u8]) -> Option<T> {
        let value = self.call("state_getStorage", json!([format!("0x{}", hex::encode(key))]));
        value
            .as_str()
            .map(|text| T::decode(&mut &hex::decode(text.trim_start_matches("0x")).unwrap()[..]).unwrap())
    }

    /// Sends a transaction; the whole answer, errors included.
    pub fn submit(&self, transaction: &UncheckedExtrinsic) -> Value {
        let params = json!([format!("0x{}", hex::encode(transaction.encode()))]);
        self.try_call("author_submitExtrinsic", &params).unwrap()
    }
}

fn try_call(port: u16, method: &str, params: &Value) -> std::io::Result<Value> {
    let body = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params }).to_string();
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(RPC_TIMEOUT))?;
    write!(
        stream,
        "POST / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Ok(serde_json::from_str(body)?)
}

/// Asks over a WebSocket that is opened as a browser opens it for a page of `origin`.
pub fn call_from_page(port: u16, origin: &str, method: &str) -> Value {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(RPC_TIMEOUT)).unwrap();
    write!(
        stream,
        "GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nOrigin: {origin}\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    .unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));

    let question = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": [] }).to_string();
    let length = u8::try_from(question.len()).unwrap();
    assert!(length < 126, "longer questions have another frame");
    // One text frame with a mask of zeros.
    stream.write_all(&[0x81, 0x80 | length, 0, 0, 0, 0]).unwrap();
    stream.write_all(question.as_bytes()).unwrap();
    loop {
        let mut header = [0; 2];
        stream.read_exact(&mut header).unwrap();
        let length = match header[1] {
            126 => {
                let mut long = [0; 2];
                stream.read_exact(&mut long).unwrap();
                usize::from(u16::from_be_bytes(long))
            }
            short => usize::from(short),
        };
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload).unwrap();
        // The server begins with a ping; the answer is the first text.
        if header[0] == 0x81 {
            return serde_json::from_slice(&payload).unwrap();
        }
    }
}

/// Runs a command of the program to its end.
pub fn run(arguments: &[&str]) -> std::process::Output {
    Command::new(NODE).args(arguments).output().unwrap()
}

/// Standard error as text.
pub fn errors(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
