//! TLS with certificates of both sides, read anew when the files change.

use core::fmt;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result, ensure};
use rustls::crypto::ring::default_provider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;

use super::server::Notice;

/// Where the certificates are, as PEM. Every one of them is needed: without an authority for clients there is no TCP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The server's certificate, with those between it and its authority.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The authorities that sign clients' certificates.
    pub client_ca: PathBuf,
}

/// Who the server is, and which clients it lets in.
pub struct Tls {
    files: Files,
    state: Mutex<State>,
}

struct State {
    config: Arc<ServerConfig>,
    /// Of the files that were last read, whether they could be used or not.
    stamps: [Stamp; 3],
}

/// Changes when a file does. A volume of Kubernetes exchanges the file behind a link.
type Stamp = Option<(u64, u64, i64, i64, u64)>;

impl fmt::Debug for Tls {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    ///
    /// When one of them cannot be read or holds something else, or the key does not fit the certificate.
    pub fn load(files: Files) -> Result<Self> {
        let stamps = stamps(&files);
        let config = config(&files)?;
        Ok(Self { files, state: Mutex::new(State { config, stamps }) })
    }

    /// For the next connection. Files that changed are read anew; while they make no sense, such as a certificate whose
    /// key is still to be written, those before them stay.
    pub(super) fn acceptor(&self, notice: &Notice) -> TlsAcceptor {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let stamps = stamps(&self.files);
        if stamps != state.stamps {
            state.stamps = stamps;
            match config(&self.files) {
                Ok(config) => {
                    state.config = config;
                    notice(format!("read the certificates anew, `{}`", self.files.certificate.display()));
                }
                Err(error) => notice(format!("the certificates changed and stay as they were: {error:#}")),
            }
        }
        Arc::clone(&state.config).into()
    }
}

fn stamps(files: &Files) -> [Stamp; 3] {
    [&files.certificate, &files.key, &files.client_ca].map(|path| {
        let file = path.metadata().ok()?;
        Some((file.dev(), file.ino(), file.mtime(), file.mtime_nsec(), file.len()))
    })
}

fn config(files: &Files) -> Result<Arc<ServerConfig>> {
    let provider = Arc::new(default_provider());
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&files.client_ca)? {
        let added = roots.add(certificate);
        added
            .with_context(|| format!("`{}` has a certificate of no authority", files.client_ca.display()))?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), Arc::clone(&provider));
    let verifier = verifier.build().context("failed to set the check of clients up")?;
    let key = read(&files.key)?;
    let key = PrivateKeyDer::from_pem_slice(&key)
        .map_err(|_| anyhow::anyhow!("`{}` is no PEM of a private key", files.key.display()))?;
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.context("failed to set TLS up")?.with_client_cert_verifier(verifier);
    let config = builder.with_single_cert(certificates(&files.certificate)?, key);
    let mut config = config.with_context(|| {
        format!("`{}` is no key of `{}`", files.key.display(), files.certificate.display())
    })?;
    // What gRPC's clients insist on.
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let pem = read(path)?;
    let found = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
    let found = found.map_err(|error| anyhow::anyhow!("`{}` is no PEM: {error}", path.display()))?;
    ensure!(
        !found.is_empty(),
        "found no certificate in `{}`; expected PEM with one at least",
        path.display()
    );
    Ok(found)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("failed to read `{}`", path.display()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::net::SocketAddr;

    use rustls::pki_types::ServerName;
    use tempfile::TempDir;
    use tokio::net::{TcpListener, TcpStream};
    use tokio_rustls::TlsConnector;

    use super::*;
    use crate::grpc::client::Client;
    use crate::grpc::server::{Answering, Limits, Sender, Server, Service};
    use crate::grpc::testing::Raw;
    use crate::sources::http::testing::Authority;
    use crate::sources::http::tls::{Own, trusting};

    struct Hello;

    impl Service for Hello {
        fn call<'a>(&'a self, _: &'a str, _: bytes::Bytes, sender: &'a mut Sender) -> Answering<'a> {
            Box::pin(async move { sender.send(&b"hello".to_vec()).await })
        }
    }

    fn files(folder: &TempDir) -> Files {
        let path = |name: &str| folder.path().join(name);
        Files { certificate: path("tls.crt"), key: path("tls.key"), client_ca: path("ca.crt") }
    }

    /// Writes a new certificate of the authority's for 127.0.0.1, and lets its clients in.
    fn write(files: &Files, authority: &Authority) {
        let (certificate, key) = authority.issue("127.0.0.1");
        // As a volume does it: another file in its place.
        for (path, text) in
            [(&files.certificate, certificate), (&files.key, key), (&files.client_ca, authority.pem())]
        {
            let new = path.with_extension("new");
            fs::write(&new, text).unwrap();
            fs::rename(&new, path).unwrap();
        }
    }

    struct Served {
        address: SocketAddr,
        folder: TempDir,
        notices: Arc<Mutex<Vec<String>>>,
        task: tokio::task::JoinHandle<()>,
    }

    impl Drop for Served {
        fn drop(&mut self) {
            self.task.abort();
        }
    }

    async fn served(authority: &Authority) -> Served {
        let folder = tempfile::tempdir().unwrap();
        let files = files(&folder);
        write(&files, authority);
        let tls = Tls::load(files).unwrap();
        assert!(!format!("{tls:?}").contains("PRIVATE"));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let notices = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&notices);
        let notice: Notice = Arc::new(move |line| told.lock().unwrap().push(line));
        let server = Server::new(vec![("a.Hello", Arc::new(Hello))], Limits::AGENT, notice);
        let task = tokio::spawn(async move {
            server.serve_tls(&listener, &tls).await;
        });
        Served { address, folder, notices, task }
    }

    /// What a client that trusts `server` and is one of `own` gets for an answer.
    async fn ask(served: &Served, server: &Authority, own: Option<&Authority>) -> Result<Vec<u8>> {
        let own = own.map(|authority| {
            let (certificate, key) = authority.issue("relay");
            Own { certificate: certificate.into_bytes(), key: key.into_bytes() }
        });
        let config = trusting(server.pem().as_bytes(), "the test", own.as_ref()).unwrap();
        let mut config = Arc::unwrap_or_clone(config);
        config.alpn_protocols = vec![b"h2".to_vec()];
        let stream = TcpStream::connect(served.address).await?;
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        let client = Client::over(stream).await?;
        let answer = client.ask("/a.Hello/Hello", &Vec::<u8>::new()).await;
        answer.map_err(|failure| anyhow::anyhow!("{failure}"))
    }

    #[tokio::test]
    async fn only_clients_with_a_certificate() {
        let (authority, other) = (Authority::new(), Authority::new());
        let served = served(&authority).await;
        assert_eq!(ask(&served, &authority, Some(&authority)).await.unwrap(), b"hello");
        assert!(ask(&served, &authority, None).await.is_err(), "without one");
        assert!(ask(&served, &authority, Some(&other)).await.is_err(), "of another authority");
        assert!(ask(&served, &other, Some(&authority)).await.is_err(), "it does not trust the server");
        let mut plain = Raw::over(TcpStream::connect(served.address).await.unwrap()).await;
        plain.call(1, "/a.Hello/Hello").await;
        plain.message(1, &[]).await;
        let answered = plain.frame().await;
        assert!(answered.is_none_or(|frame| frame.kind != 1), "no TLS, no answer");
        assert_eq!(ask(&served, &authority, Some(&authority)).await.unwrap(), b"hello");
        // What is said of them is one line, as they come at once.
        let notices = served.notices.lock().unwrap().clone();
        assert_eq!(notices.len(), 1, "{notices:?}");
        assert!(notices[0].starts_with("refused 127.0.0.1:"), "{notices:?}");
    }

    #[tokio::test]
    async fn certificates_that_change() {
        let (old, new) = (Authority::new(), Authority::new());
        let served = served(&old).await;
        let files = files(&served.folder);
        let key = fs::read(&files.key).unwrap();
        fs::write(&files.key, "half a k").unwrap();
        assert_eq!(ask(&served, &old, Some(&old)).await.unwrap(), b"hello", "what was there stays");
        fs::write(&files.key, key).unwrap();
        assert_eq!(ask(&served, &old, Some(&old)).await.unwrap(), b"hello");
        write(&files, &new);
        assert_eq!(ask(&served, &new, Some(&new)).await.unwrap(), b"hello");
        assert!(ask(&served, &new, Some(&old)).await.is_err(), "the old authority's clients are out");
        let notices = served.notices.lock().unwrap().clone();
        let starts = ["the certificates changed and stay as they were: `", "read the certificates anew, `"];
        assert!(notices.iter().zip(starts).all(|(notice, start)| notice.starts_with(start)), "{notices:?}");
        assert!(!notices.concat().contains("half a k"), "{notices:?}");
    }

    #[test]
    fn files_that_are_none() {
        let folder = tempfile::tempdir().unwrap();
        let (files, authority) = (files(&folder), Authority::new());
        for (spoil, said) in [
            (&files.client_ca, "found no certificate in `"),
            (&files.certificate, "found no certificate in `"),
            (&files.key, "is no PEM of a private key"),
        ] {
            write(&files, &authority);
            Tls::load(files.clone()).unwrap();
            fs::write(spoil, "nothing").unwrap();
            let error = format!("{:#}", Tls::load(files.clone()).unwrap_err());
            assert!(error.contains(said), "{error}");
            fs::remove_file(spoil).unwrap();
            let error = format!("{:#}", Tls::load(files.clone()).unwrap_err());
            assert!(error.contains("failed to read `"), "{error}");
        }
        write(&files, &authority);
        fs::write(&files.key, authority.issue("127.0.0.1").1).unwrap();
        let error = format!("{:#}", Tls::load(files.clone()).unwrap_err());
        assert!(error.contains("is no key of `"), "{error}");
    }
}
