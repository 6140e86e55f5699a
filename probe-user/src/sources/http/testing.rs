//! Servers of our own on 127.0.0.1 that say what the documentation says they would, or what they should not.

use std::{
    io::{BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use rustls::{
    ServerConfig, ServerConnection, StreamOwned, crypto::ring::default_provider, server::WebPkiClientVerifier,
};

use super::{Client, Patience, Resolver, Url, line};

/// Long enough on a busy machine.
pub(crate) const PATIENT: Patience = Patience {
    connect: Duration::from_secs(20),
    each: Duration::from_secs(40),
    total: Duration::from_mins(1),
};

/// A request, as a server saw it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// Method.
    pub(crate) method: String,
    /// Path and query.
    pub(crate) path: String,
    /// Headers, names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    /// Body, if it is text.
    pub(crate) body: String,
    /// Body as bytes.
    pub(crate) bytes: Vec<u8>,
}

impl Seen {
    /// A header's value.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }

    /// The value of a parameter of the query, escaped as it was.
    pub(crate) fn query(&self, name: &str) -> Option<&str> {
        let (_, query) = self.path.split_once('?')?;
        query
            .split('&')
            .find_map(|pair| pair.split_once('=').filter(|(own, _)| *own == name))
            .map(|(_, value)| value)
    }
}

/// What a server does with a request.
pub(crate) enum Reply {
    /// Sends these bytes and closes.
    Bytes(Vec<u8>),
    /// Sends these bytes and then nothing, until the client goes.
    Hang(Vec<u8>),
    /// Sends what this writes, as it comes.
    Stream(Box<Streamed>),
}

/// Writes an answer, head and all.
pub(crate) type Streamed = dyn FnOnce(&mut dyn Write) -> std::io::Result<()> + Send;

impl Reply {
    /// JSON with this status.
    pub(crate) fn json(status: &str, body: &str) -> Self {
        Self::with(status, "", body)
    }

    /// JSON with status 200.
    pub(crate) fn ok(body: &str) -> Self {
        Self::json("200 OK", body)
    }

    /// As [`Self::json`] with more headers, each with its line's end.
    pub(crate) fn with(status: &str, headers: &str, body: &str) -> Self {
        Self::bytes(status, "application/json", headers, body.as_bytes())
    }

    /// A body of any kind.
    pub(crate) fn bytes(status: &str, content_type: &str, headers: &str, body: &[u8]) -> Self {
        let length = body.len();
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n{headers}\r\n"
        );
        Self::Bytes([head.as_bytes(), body].concat())
    }
}

/// A server that lives as long as the test.
#[derive(Clone)]
pub(crate) struct Server {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Server {
    /// Answers each request by `reply`.
    pub(crate) fn start(reply: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        Self::serve(None, reply)
    }

    /// As [`Self::start`], over TLS.
    pub(crate) fn start_tls(
        config: Arc<ServerConfig>,
        reply: impl Fn(&Seen) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::serve(Some(config), reply)
    }

    fn serve(tls: Option<Arc<ServerConfig>>, reply: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        Self::serve_at(TcpListener::bind("127.0.0.1:0").unwrap(), tls, reply)
    }

    /// As [`Self::start`], at a listener of the test's own.
    pub(crate) fn serve_at(
        listener: TcpListener,
        tls: Option<Arc<ServerConfig>>,
        reply: impl Fn(&Seen) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (all, reply) = (seen.clone(), Arc::new(reply));
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (all, reply, tls) = (all.clone(), reply.clone(), tls.clone());
                // A client may go at any time: that is its affair.
                thread::spawn(move || match tls {
                    Some(config) => {
                        let session = ServerConnection::new(config).unwrap();
                        drop(converse(StreamOwned::new(session, stream), &all, &*reply));
                    }
                    None => drop(converse(stream, &all, &*reply)),
                });
            }
        });
        Self { address, seen }
    }

    /// Requests so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// Its address as text.
    pub(crate) fn url(&self, scheme: &str) -> String {
        format!("{scheme}://{}", self.address)
    }

    /// A client of it.
    pub(crate) fn client(&self) -> Client {
        client(&self.url("http"))
    }
}

/// A patient client of the server at `url`.
pub(crate) fn client(url: &str) -> Client {
    let base: Url = url.parse().unwrap();
    Client { base, tls: None, patience: PATIENT, max_body: 1 << 20, resolver: Resolver::default() }
}

fn converse(
    stream: impl Read + Write,
    all: &Mutex<Vec<Seen>>,
    reply: &dyn Fn(&Seen) -> Reply,
) -> anyhow::Result<()> {
    let mut reader = BufReader::new(stream);
    let first = line(&mut reader)?;
    let mut words = first.split(' ').map(str::to_owned);
    let mut seen = Seen {
        method: words.next().unwrap_or_default(),
        path: words.next().unwrap_or_default(),
        ..Seen::default()
    };
    loop {
        let header = line(&mut reader)?;
        let Some((name, value)) = header.split_once(':') else { break };
        seen.headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let length = seen.header("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    seen.body = String::from_utf8(body.clone()).unwrap_or_default();
    seen.bytes = body;
    all.lock().unwrap().push(seen.clone());
    let stream = reader.get_mut();
    match reply(&seen) {
        Reply::Bytes(bytes) => stream.write_all(&bytes)?,
        Reply::Stream(write) => write(stream)?,
        Reply::Hang(bytes) => {
            stream.write_all(&bytes)?;
            stream.flush()?;
            let mut byte = [0];
            while stream.read(&mut byte)? > 0 {}
        }
    }
    stream.flush()?;
    Ok(())
}

/// A port at 127.0.0.1 on which nobody listens.
pub(crate) fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Takes connections and says nothing.
pub(crate) fn mute() -> (SocketAddr, thread::JoinHandle<Option<TcpStream>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (address, thread::spawn(move || listener.accept().ok().map(|(stream, _)| stream)))
}

/// An authority of the test's own.
pub(crate) struct Authority {
    certificate: rcgen::Certificate,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Authority {
    /// A new one.
    pub(crate) fn new() -> Self {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Self { certificate, issuer: rcgen::Issuer::new(params, key) }
    }

    /// Its certificate.
    pub(crate) fn pem(&self) -> String {
        self.certificate.pem()
    }

    /// A certificate and its key for a name or an address, as PEM.
    pub(crate) fn issue(&self, name: &str) -> (String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    /// A server's side for a name or an address; with `clients`, only for those with a certificate of this authority.
    pub(crate) fn server(&self, name: &str, clients: bool) -> Arc<ServerConfig> {
        use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
        let (certificate, key) = self.issue(name);
        let provider = Arc::new(default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone());
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        let builder = if clients {
            let mut roots = rustls::RootCertStore::empty();
            roots.add(self.certificate.der().clone()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
            builder.with_client_cert_verifier(verifier.build().unwrap())
        } else {
            builder.with_no_client_auth()
        };
        let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
        builder.with_single_cert(vec![certificate], key).unwrap().into()
    }
}
