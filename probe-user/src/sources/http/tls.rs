//! Whom a client trusts, and who it is itself.

use std::{path::Path, sync::Arc};

use anyhow::{Context as _, Result, bail, ensure};
use rustls::{
    CertificateError, ClientConfig, RootCertStore,
    crypto::ring::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};

/// Where distributions keep the certificates of the authorities that all trust. Sources: Debian and Ubuntu; Azure Linux,
/// Fedora and their kin; SUSE; Alpine.
const BUNDLES: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// The variable by which every TLS library is told another one.
const BUNDLE_VARIABLE: &str = "SSL_CERT_FILE";

/// A client's certificate and key, as PEM.
pub struct Own {
    /// The certificate, with those between it and the authority.
    pub certificate: Vec<u8>,
    /// Its key.
    pub key: Vec<u8>,
}

/// Trusts the authorities in `pem`, which is from `origin`.
///
/// # Errors
///
/// If there are none, or `own` is no certificate with its key.
pub fn trusting(pem: &[u8], origin: &str, own: Option<&Own>) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem).filter_map(Result::ok).collect();
    let found = certificates.len();
    // A bundle may have one that is too old for the library, among a hundred good ones.
    let (good, _) = roots.add_parsable_certificates(certificates);
    ensure!(
        good > 0,
        "found {found} certificates in {origin}, none of which can be used; expected PEM with one at least"
    );
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()));
    let builder = builder.with_safe_default_protocol_versions().context("failed to set TLS up")?;
    let builder = builder.with_root_certificates(roots);
    let config = match own {
        None => builder.with_no_client_auth(),
        Some(own) => {
            let certificate = CertificateDer::pem_slice_iter(&own.certificate).collect::<Result<Vec<_>, _>>();
            let certificate =
                certificate.map_err(|_| anyhow::anyhow!("the client's certificate is no PEM"))?;
            let key = PrivateKeyDer::from_pem_slice(&own.key);
            let key = key.map_err(|_| anyhow::anyhow!("the client's key is no PEM of a private key"))?;
            builder
                .with_client_auth_cert(certificate, key)
                .context("the client's key does not fit its certificate")?
        }
    };
    Ok(Arc::new(config))
}

/// Trusts the authorities that this machine trusts.
///
/// # Errors
///
/// If it has no bundle of them, or `own` is no certificate with its key.
pub fn trusting_system(own: Option<&Own>) -> Result<Arc<ClientConfig>> {
    let given = std::env::var_os(BUNDLE_VARIABLE);
    let mut paths = given.iter().map(Path::new).chain(BUNDLES.iter().map(Path::new));
    // The first decides, as with every other program: one that was given and is not there must not go unnoticed.
    let found = if given.is_some() { paths.next() } else { paths.find(|path| path.is_file()) };
    let Some(path) = found else {
        bail!(
            "found no certificates of authorities; expected one of {}; install `ca-certificates`, mount the node's, or name a file by {BUNDLE_VARIABLE}",
            BUNDLES.join(", ")
        );
    };
    let shown = path.display();
    let pem = std::fs::read(path)
        .with_context(|| format!("failed to read the authorities' certificates in `{shown}`"))?;
    trusting(&pem, &format!("`{shown}`"), own)
}

/// The TLS error behind an error of a stream.
pub fn cause(error: &anyhow::Error) -> Option<&rustls::Error> {
    error.chain().find_map(|cause| {
        let io = cause.downcast_ref::<std::io::Error>()?;
        io.get_ref()?.downcast_ref::<rustls::Error>()
    })
}

/// What went wrong, and what it means.
pub fn explained(error: &rustls::Error) -> String {
    let advice = match error {
        rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        ) => {
            "no authority that is trusted here has signed its certificate; is the right CA given, or does a proxy open TLS?"
        }
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => "its certificate is for another name",
        rustls::Error::InvalidCertificate(
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. },
        ) => "its certificate is not valid at this time; is the clock right?",
        rustls::Error::InvalidMessage(_) => "it does not speak TLS; is the port right?",
        rustls::Error::AlertReceived(_) => "it refused the connection; is the client's certificate right?",
        _ => "it could not prove who it is",
    };
    format!("{advice} ({error})")
}
