//! TLS on the listener for clients: certificates from files, clients' certificates where they are asked for, and both
//! read again while the server runs. Knows no HTTP.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use crate::{ServerError, TlsFiles};

/// What is spoken under TLS.
const PROTOCOL: &[u8] = b"http/1.1";

/// The certificates of one listener.
#[derive(Debug)]
pub(crate) struct Tls {
    files: TlsFiles,
    config: RwLock<Arc<ServerConfig>>,
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// [`ServerError::TlsFile`].
    pub(crate) fn open(files: TlsFiles) -> Result<Self, ServerError> {
        let config = RwLock::new(Arc::new(config(&files)?));
        Ok(Self { files, config })
    }

    /// Reads the files again, for connections from here on. On an error everything stays as it is.
    ///
    /// # Errors
    /// As [`Tls::open`].
    pub(crate) fn reload(&self) -> Result<(), ServerError> {
        let config = Arc::new(config(&self.files)?);
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = config;
        Ok(())
    }

    /// Takes the next connection.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        let config = self.config.read().unwrap_or_else(PoisonError::into_inner);
        TlsAcceptor::from(Arc::clone(&config))
    }
}

fn config(files: &TlsFiles) -> Result<ServerConfig, ServerError> {
    let TlsFiles { certificate, key, client_authority } = files;
    let certificates = certificates(certificate)?;
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|it| broken(key, it))?;
    let provider = Arc::new(default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|it| broken(certificate, it))?;
    let builder = match client_authority {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for it in self::certificates(path)? {
                roots.add(it).map_err(|it| broken(path, it))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|it| broken(path, it))?)
        }
    };
    let mut config = builder.with_single_cert(certificates, secret).map_err(|it| broken(certificate, it))?;
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    Ok(config)
}

fn certificates(path: &PathBuf) -> Result<Vec<CertificateDer<'static>>, ServerError> {
    let found = CertificateDer::pem_file_iter(path).map_err(|it| broken(path, it))?;
    let found = found.collect::<Result<Vec<_>, _>>().map_err(|it| broken(path, it))?;
    if found.is_empty() {
        return Err(broken(path, "expected certificates in PEM, found none"));
    }
    Ok(found)
}

fn broken(path: &Path, reason: impl std::fmt::Display) -> ServerError {
    ServerError::TlsFile { path: path.into(), reason: reason.to_string() }
}
