//! A server in this process, and a client that can do what clients should not.
#![allow(dead_code, reason = "each test file uses its part")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use ondine_fixtures::Tiny;
use ondine_runtime::backend::cpu::CpuBackend;
use ondine_runtime::backend::{KvType, LoadOptions};
use ondine_runtime::gguf::ModelFile;
use ondine_runtime::source::Memory;
use ondine_runtime::{Limits, Model};
use ondine_server::engine::{Engine, EngineOptions};
use ondine_server::{App, Models, Offer, OnDevice, Placement, Server, ServerOptions};
use serde_json::Value;

/// A server that ends when it is dropped.
pub struct Running {
    pub address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// What a server answered.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines();
        lines.find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then_some(value)
        })
    }

    /// The events of a stream, without the last `[DONE]`.
    pub fn events(&self) -> Vec<Value> {
        let lines = self
            .body
            .lines()
            .filter_map(|line| line.strip_prefix("data: "));
        lines
            .filter(|line| *line != "[DONE]")
            .map(|line| serde_json::from_str(line).expect(line))
            .collect()
    }
}

/// A tiny random model of this shape.
pub fn tiny(shape: &Tiny) -> Arc<Model> {
    let limits = Limits::default();
    let source = Memory::new("tiny", shape.gguf());
    let file = ModelFile::from_source(Arc::new(source), &limits).expect("a whole file");
    Arc::new(Model::from_file(Path::new("tiny"), file, &limits).expect("a whole model"))
}

pub fn engine(model: &Arc<Model>, options: EngineOptions) -> Engine {
    let backend = CpuBackend::from_environment().expect("a processor");
    let load = LoadOptions {
        context: Some(1024),
        // So exact that an answer does not depend on what it is computed with.
        kv_type: KvType::F32,
        threads: Some(2),
        ..LoadOptions::default()
    };
    let decoder = model.load(&backend, &load).expect("it fits");
    Engine::start(model.clone(), decoder, options).expect("a thread")
}

fn tiny_offer(shape: &Tiny, options: EngineOptions) -> Offer {
    let model = tiny(shape);
    Offer {
        name: "tiny".into(),
        modified: SystemTime::UNIX_EPOCH,
        bytes: 1,
        loader: Box::new(move || Ok(engine(&model, options))),
    }
}

impl Running {
    /// A server of a tiny model.
    pub fn tiny(engine_options: EngineOptions, options: ServerOptions) -> Self {
        Running::of(&Tiny::new("llama", 1), engine_options, options)
    }

    /// A server of a random model of this shape.
    pub fn of(shape: &Tiny, engine_options: EngineOptions, options: ServerOptions) -> Self {
        Running::serve(vec![tiny_offer(shape, engine_options)], options)
    }

    pub fn serve(offers: Vec<Offer>, options: ServerOptions) -> Self {
        Running::placed(offers, Box::new(OnDevice), options)
    }

    /// A server of a tiny model whose requests run where `placement` says.
    pub fn routed(placement: Box<dyn Placement>) -> Self {
        let offer = tiny_offer(&Tiny::new("llama", 1), EngineOptions::default());
        Running::placed(vec![offer], placement, ServerOptions::default())
    }

    fn placed(offers: Vec<Offer>, placement: Box<dyn Placement>, options: ServerOptions) -> Self {
        let app = App::new(Models::new(offers), placement, options).expect("a scanner");
        let server = Server::bind(([127, 0, 0, 1], 0).into(), app).expect("a free port");
        let address = server.address().expect("bound");
        let stop = Arc::new(AtomicBool::new(false));
        let flag = stop.clone();
        let thread = std::thread::spawn(move || {
            server
                .run(&|| flag.load(Ordering::Relaxed))
                .expect("it runs")
        });
        Running {
            address,
            stop,
            thread: Some(thread),
        }
    }

    /// Asks the server to end.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// A connection on which a request was sent.
    pub fn send(&self, method: &str, path: &str, headers: &[&str], body: &str) -> TcpStream {
        let mut stream = self.connect();
        let mut head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n",
            self.address
        );
        for header in headers {
            head.push_str(&format!("{header}\r\n"));
        }
        head.push_str(&format!("Content-Length: {}\r\n\r\n{body}", body.len()));
        stream.write_all(head.as_bytes()).expect("sent");
        stream
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).expect("it listens");
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .expect("set");
        stream
    }

    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.post_with(path, &[], body)
    }

    pub fn post_with(&self, path: &str, headers: &[&str], body: &Value) -> Answer {
        read(self.send("POST", path, headers, &body.to_string()))
    }

    pub fn get(&self, path: &str) -> Answer {
        read(self.send("GET", path, &[], ""))
    }

    /// The value of a metric.
    pub fn metric(&self, name: &str) -> u64 {
        let text = self.get("/metrics").body;
        assert!(
            text.contains(&format!("# TYPE {name} ")),
            "{name} is no metric"
        );
        // Before the model is loaded there is none.
        let line = text.lines().find(|line| line.starts_with(name));
        line.map_or(0, |line| {
            let value = line.rsplit(' ').next().expect("a value");
            value.parse().expect("a number")
        })
    }

    /// Waits until a metric has this value at least.
    pub fn wait_for(&self, name: &str, value: u64) {
        for _ in 0..6000 {
            if self.metric(name) >= value {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("{name} is {} and not {value}", self.metric(name));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Reads an answer to its end; chunks are put together, interim responses skipped.
pub fn read(mut stream: TcpStream) -> Answer {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).expect("an answer");
    parse(&bytes)
}

pub fn parse(bytes: &[u8]) -> Answer {
    let text = String::from_utf8_lossy(bytes).into_owned();
    let (head, mut body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .unwrap_or(0);
    if status == 100 {
        return parse(body.as_bytes());
    }
    let mut whole = String::new();
    if head
        .to_ascii_lowercase()
        .contains("transfer-encoding: chunked")
    {
        while let Some((length, rest)) = body.split_once("\r\n") {
            let length = usize::from_str_radix(length, 16).unwrap_or(0);
            if length == 0 || rest.len() < length {
                break;
            }
            whole.push_str(&rest[..length]);
            body = &rest[length + 2..];
        }
    } else {
        whole.push_str(body);
    }
    Answer {
        status,
        head: head.to_owned(),
        body: whole,
    }
}
