//! A provider with OpenAI's interface that fails as it is told to, and keeps what it is sent.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

/// What it does with a request.
#[derive(Debug, Clone)]
pub enum Act {
    /// Answers with these texts, streamed, to the end.
    Answer(Vec<String>),
    /// Answers the beginning, then closes the connection.
    Break(Vec<String>),
    /// Answers the beginning, then says nothing until the other side goes away.
    Hang(Vec<String>),
    /// Refuses with a status line and headers.
    Refuse(&'static str),
    /// Sends these bytes.
    Raw(String),
}

/// The provider; its threads end with the process.
pub struct Provider {
    pub address: SocketAddr,
    /// Head and body of each request.
    pub requests: Arc<Mutex<Vec<(String, String)>>>,
    /// How often the other side went away during a [`Act::Hang`].
    pub left: Arc<Mutex<usize>>,
}

impl Provider {
    /// A provider that does this with its `n`th request.
    pub fn new(act: impl Fn(usize, &Value) -> Act + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let provider = Provider {
            address: listener.local_addr().expect("bound"),
            requests: Arc::default(),
            left: Arc::default(),
        };
        let (requests, left) = (provider.requests.clone(), provider.left.clone());
        let act = Arc::new(act);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (requests, left, act) = (requests.clone(), left.clone(), act.clone());
                std::thread::spawn(move || {
                    // A peer that breaks off is part of the tests.
                    let _ = serve(stream, &requests, &left, act.as_ref());
                });
            }
        });
        provider
    }

    pub fn bodies(&self) -> Vec<String> {
        let requests = self.requests.lock().expect("nobody failed");
        requests.iter().map(|(_, body)| body.clone()).collect()
    }

    pub fn count(&self) -> usize {
        self.bodies().len()
    }
}

fn serve(
    mut stream: TcpStream,
    requests: &Mutex<Vec<(String, String)>>,
    left: &Mutex<usize>,
    act: &(dyn Fn(usize, &Value) -> Act + Sync),
) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let (head, body) = read_request(&mut stream)?;
    let value = serde_json::from_str(&body).unwrap_or_default();
    let number = {
        let mut requests = requests.lock().expect("nobody failed");
        requests.push((head, body));
        requests.len() - 1
    };
    let begin = |stream: &mut TcpStream, texts: &[String]| {
        stream.write_all(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n",
        )?;
        for text in texts {
            let event = json!({"choices": [{"index": 0, "delta": {"content": text}}]});
            stream.write_all(format!("data: {event}\n\n").as_bytes())?;
            stream.flush()?;
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok::<(), std::io::Error>(())
    };
    match act(number, &value) {
        Act::Answer(texts) => {
            begin(&mut stream, &texts)?;
            let end = json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]});
            stream.write_all(format!("data: {end}\n\ndata: [DONE]\n\n").as_bytes())
        }
        Act::Break(texts) => begin(&mut stream, &texts),
        Act::Hang(texts) => {
            let is_gone = begin(&mut stream, &texts).is_err();
            if is_gone || matches!(stream.read(&mut [0; 16]), Ok(0) | Err(_)) {
                *left.lock().expect("nobody failed") += 1;
            }
            Ok(())
        }
        Act::Refuse(status) => stream.write_all(
            format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                .as_bytes(),
        ),
        Act::Raw(text) => stream.write_all(text.as_bytes()),
    }
}

fn read_request(stream: &mut TcpStream) -> std::io::Result<(String, String)> {
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let count = stream.read(&mut piece)?;
        bytes.extend_from_slice(&piece[..count]);
        let text = String::from_utf8_lossy(&bytes);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| {
                let (key, value) = line.split_once(':')?;
                key.eq_ignore_ascii_case("content-length")
                    .then(|| value.trim().parse::<usize>().ok())?
            });
            if body.len() >= length.unwrap_or(0) {
                return Ok((head.to_owned(), body.to_owned()));
            }
        }
        if count == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// Words as the pieces of an answer.
pub fn words(text: &str) -> Vec<String> {
    text.split_inclusive(' ').map(str::to_owned).collect()
}
