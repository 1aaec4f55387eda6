//! A web server for tests: loopback only, one request per connection, every size bounded.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

const MOST_HEADERS: usize = 64;
const LONGEST_LINE: u64 = 8192;
const PATIENCE: Duration = Duration::from_secs(10);

/// What a client sent.
#[derive(Debug, Clone)]
pub struct Request {
    /// Path and query.
    pub path: String,
    /// Names in lower case.
    headers: Vec<(String, String)>,
}

impl Request {
    /// The value of a header; its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    /// The first byte asked for, if this is a range request.
    pub fn range_start(&self) -> Option<usize> {
        let range = self.header("range")?.strip_prefix("bytes=")?;
        range.strip_suffix('-')?.parse().ok()
    }
}

/// What the server answers.
#[derive(Debug, Clone)]
pub struct Response {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    sent: usize,
    declares_length: bool,
    pause_at: usize,
    pause: Duration,
}

impl Response {
    /// A status without a body.
    pub fn status(status: u16) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: Vec::new(),
            sent: usize::MAX,
            declares_length: true,
            pause_at: 0,
            pause: Duration::ZERO,
        }
    }

    /// The whole of `body`.
    pub fn whole(body: &[u8]) -> Self {
        Self {
            body: body.to_vec(),
            ..Self::status(200)
        }
    }

    /// `body` as a careful server sends it: with a tag, and only the rest if that is asked for and the tag still holds.
    pub fn ranged(request: &Request, body: &[u8], tag: &str) -> Self {
        let unchanged = request.header("if-range").is_none_or(|known| known == tag);
        match request.range_start() {
            Some(start) if unchanged && start < body.len() => Self::part(body, start),
            Some(start) if unchanged && start >= body.len() => {
                Self::status(416).with("content-range", &format!("bytes */{}", body.len()))
            }
            _ => Self::whole(body),
        }
        .with("etag", tag)
    }

    /// The bytes of `body` from `start`.
    pub fn part(body: &[u8], start: usize) -> Self {
        let range = format!("bytes {start}-{}/{}", body.len() - 1, body.len());
        Self {
            status: 206,
            ..Self::whole(&body[start..])
        }
        .with("content-range", &range)
    }

    /// With another header.
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_string(), value.to_string()));
        self
    }

    /// Announces the whole body and closes the connection after `sent` bytes of it.
    pub fn cut_after(mut self, sent: usize) -> Self {
        self.sent = sent;
        self
    }

    /// Does not say how long the body is.
    pub fn without_length(mut self) -> Self {
        self.declares_length = false;
        self
    }

    /// Sends `sent` bytes of the body, waits, and sends the rest.
    pub fn pausing_at(mut self, sent: usize, pause: Duration) -> Self {
        (self.pause_at, self.pause) = (sent, pause);
        self
    }

    fn write(&self, stream: &mut TcpStream) -> std::io::Result<()> {
        let mut head = format!("HTTP/1.1 {} Status\r\nconnection: close\r\n", self.status);
        if self.declares_length {
            head.push_str(&format!("content-length: {}\r\n", self.body.len()));
        }
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        stream.write_all(head.as_bytes())?;
        let body = &self.body[..self.sent.min(self.body.len())];
        let (first, rest) = body.split_at(self.pause_at.min(body.len()));
        stream.write_all(first)?;
        stream.flush()?;
        std::thread::sleep(self.pause);
        stream.write_all(rest)?;
        stream.flush()
    }
}

/// A running server; it ends with this value.
pub struct Server {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
    ended: Arc<AtomicBool>,
    listener: Option<JoinHandle<()>>,
}

impl Server {
    /// Answers every request with what `answer` makes of it and of the number of requests before it.
    pub fn start(answer: impl Fn(&Request, usize) -> Response + Send + Sync + 'static) -> Self {
        let socket = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = socket.local_addr().expect("its address");
        let requests = Arc::new(Mutex::new(Vec::new()));
        let ended = Arc::new(AtomicBool::new(false));
        let (seen, over, answer) = (requests.clone(), ended.clone(), Arc::new(answer));
        let listener = std::thread::spawn(move || {
            for stream in socket.incoming() {
                if over.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let (seen, answer) = (seen.clone(), answer.clone());
                std::thread::spawn(move || {
                    // A client that goes away in the middle is part of the tests.
                    let _ = serve(stream, &seen, &*answer);
                });
            }
        });
        Self {
            address,
            requests,
            ended,
            listener: Some(listener),
        }
    }

    /// The address of a path of this server.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Every request so far.
    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().expect("no test panicked").clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
    }
}

fn serve(
    mut stream: TcpStream,
    seen: &Mutex<Vec<Request>>,
    answer: &dyn Fn(&Request, usize) -> Response,
) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let request = read_request(&stream)?;
    let before = {
        let mut seen = seen.lock().expect("no test panicked");
        seen.push(request.clone());
        seen.len() - 1
    };
    answer(&request, before).write(&mut stream)
}

fn read_request(stream: &TcpStream) -> std::io::Result<Request> {
    let mut reader = BufReader::new(stream);
    let mut line = || -> std::io::Result<String> {
        let mut text = String::new();
        reader.by_ref().take(LONGEST_LINE).read_line(&mut text)?;
        Ok(text.trim_end().to_string())
    };
    let path = line()?.split(' ').nth(1).unwrap_or_default().to_string();
    let mut headers = Vec::new();
    while headers.len() < MOST_HEADERS {
        let text = line()?;
        let Some((name, value)) = text.split_once(':') else {
            break;
        };
        headers.push((name.to_ascii_lowercase(), value.trim().to_string()));
    }
    Ok(Request { path, headers })
}
