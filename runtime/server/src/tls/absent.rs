//! Stands in for TLS in a build without it: a server that should speak it does not start.

use tokio::net::TcpStream;

use crate::{ServerError, TlsFiles};

/// Never made.
#[derive(Debug)]
pub(crate) enum Tls {}

impl Tls {
    pub(crate) fn open(files: TlsFiles) -> Result<Self, ServerError> {
        let reason = "this build speaks no TLS; one with the feature `tls` does, and so does a proxy in front";
        Err(ServerError::TlsFile { path: files.certificate, reason: reason.to_owned() })
    }

    pub(crate) fn reload(&self) -> Result<(), ServerError> {
        match *self {}
    }

    pub(crate) fn acceptor(&self) -> Acceptor {
        match *self {}
    }
}

/// Never made.
pub(crate) enum Acceptor {}

impl Acceptor {
    pub(crate) async fn accept(self, _stream: TcpStream) -> std::io::Result<TcpStream> {
        match self {}
    }
}
