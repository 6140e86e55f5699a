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
