//! Encryption in front of a provider, with certificates made for the test.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned};

/// A certificate that vouches for itself, and its key.
pub struct Certificate {
    pub der: Vec<u8>,
    key: Vec<u8>,
}

impl Certificate {
    pub fn new(name: &str) -> Self {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).expect("a certificate");
        Certificate {
            der: made.cert.der().to_vec(),
            key: made.signing_key.serialize_der(),
        }
    }
}

/// Where one can reach `behind` encrypted; its threads end with the process.
pub fn front(certificate: &Certificate, behind: SocketAddr) -> SocketAddr {
    let key = PrivateKeyDer::try_from(certificate.key.clone()).expect("a key");
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der.clone().into()], key)
        .expect("a pair");
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let config = config.clone();
            // A client that does not trust the certificate breaks off.
            std::thread::spawn(move || relay(stream, config, behind));
        }
    });
    address
}

fn relay(stream: TcpStream, config: Arc<ServerConfig>, behind: SocketAddr) -> std::io::Result<()> {
    let connection = ServerConnection::new(config).map_err(std::io::Error::other)?;
    let mut stream = StreamOwned::new(connection, stream);
    let mut request = Vec::new();
    let mut buffer = [0; 4096];
    while !is_whole(&request) {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            read => request.extend_from_slice(&buffer[..read]),
        }
    }
    let mut provider = TcpStream::connect(behind)?;
    provider.write_all(&request)?;
    loop {
        match provider.read(&mut buffer)? {
            0 => break,
            read => stream.write_all(&buffer[..read])?,
        }
    }
    stream.conn.send_close_notify();
    stream.flush()
}

fn is_whole(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request);
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        let is_it = name.eq_ignore_ascii_case("content-length");
        is_it.then(|| value.trim().parse::<usize>().ok())?
    });
    body.len() >= length.unwrap_or(0)
}
