//! TLS as clients meet it: certificates, those of clients, and renewal while the server runs.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::scripted::{Numbers, ScriptedDecoder, policy, script};
use crate::tls::Tls;
use crate::{Options, Server, ServerError, TlsFiles};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/tls").join(name)
}

fn files(client_authority: bool) -> TlsFiles {
    let client_authority = client_authority.then(|| fixture("authority.pem"));
    TlsFiles { certificate: fixture("server.pem"), key: fixture("server.key"), client_authority }
}

fn start(tls: TlsFiles) -> Result<Server, ServerError> {
    let decoder = ScriptedDecoder::new(Numbers::OneToken, script());
    Server::start(policy(decoder), Options { tls: Some(tls), ..Options::loopback(0) })
}

fn wait<T>(what: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(what)
}

/// The first line of the answer to a request, with a certificate or without.
fn ask(server: &Server, own: Option<&str>) -> std::io::Result<String> {
    wait(ask_at(server.address(), own))
}

async fn ask_at(address: SocketAddr, own: Option<&str>) -> std::io::Result<String> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(fixture("authority.pem")).unwrap()).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()));
    let builder = builder.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
    let config = match own {
        None => builder.with_no_client_auth(),
        Some(name) => {
            let certificate = CertificateDer::from_pem_file(fixture(&format!("{name}.pem"))).unwrap();
            let key = PrivateKeyDer::from_pem_file(fixture(&format!("{name}.key"))).unwrap();
            builder.with_client_auth_cert(vec![certificate], key).unwrap()
        }
    };
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from("localhost").unwrap();
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    stream.write_all(b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned())
}

#[test]
fn clients_are_answered_over_tls_and_only_over_tls() {
    let server = start(files(false)).unwrap();
    assert_eq!(ask(&server, None).unwrap(), "HTTP/1.1 200 OK");
    let mut plain = std::net::TcpStream::connect(server.address()).unwrap();
    plain.write_all(b"GET /live HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    server.stop().unwrap();
}

#[test]
fn where_clients_need_certificates_others_get_nowhere() {
    let server = start(files(true)).unwrap();
    assert_eq!(ask(&server, Some("client")).unwrap(), "HTTP/1.1 200 OK");
    // Under TLS 1.3 a client hears of its refusal when it reads.
    assert!(ask(&server, None).is_err());
    assert!(ask(&server, Some("stranger")).is_err());
    server.stop().unwrap();
}

#[test]
fn certificates_are_read_again_and_broken_ones_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let copy = |name: &str| {
        for (from, to) in [(format!("{name}.pem"), "now.pem"), (format!("{name}.key"), "now.key")] {
            std::fs::copy(fixture(&from), folder.path().join(to)).unwrap();
        }
    };
    copy("server");
    let (certificate, key) = (folder.path().join("now.pem"), folder.path().join("now.key"));
    let tls = Tls::open(TlsFiles { certificate: certificate.clone(), key, client_authority: None }).unwrap();
    copy("renewed");
    tls.reload().unwrap();
    std::fs::write(&certificate, "no certificate").unwrap();
    let error = tls.reload().unwrap_err();
    assert!(matches!(&error, ServerError::TlsFile { path, .. } if *path == certificate), "{error}");
    std::fs::copy(fixture("server.pem"), &certificate).unwrap();
    let error = tls.reload().unwrap_err().to_string();
    assert!(error.contains("now.pem"), "a key of another certificate: {error}");
    let missing = TlsFiles { key: folder.path().join("none"), ..files(false) };
    assert!(matches!(start(missing), Err(ServerError::TlsFile { .. })));
}
