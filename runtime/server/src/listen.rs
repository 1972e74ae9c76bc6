//! Accepts connections, as many as may be, and ends those that are spoken over too slowly; knows nothing of what is
//! asked.

use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Sleep, sleep, timeout};

use crate::tls::Tls;

/// After a connection could not be accepted, as when there are no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// What is read of a request before its head must be whole; above the limit on headers, which answers more politely.
const HEAD_BYTES_MAX: usize = 64 << 10;

/// What one connection may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    pub(crate) connections_max: usize,
    /// For the head of a request to arrive, from when the connection has nothing else to do.
    pub(crate) header_time_max: Duration,
    /// For the client to take any byte of an answer.
    pub(crate) write_time_max: Duration,
}

/// Serves until it is told to drain and every connection has ended.
pub(crate) async fn serve(
    listener: TcpListener,
    tls: Option<Arc<Tls>>,
    router: Router,
    patience: Patience,
    mut draining: watch::Receiver<bool>,
) {
    let n_places = u32::try_from(patience.connections_max.max(1)).unwrap_or(u32::MAX);
    let places = Arc::new(Semaphore::new(n_places as usize));
    loop {
        let accept = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            _ = draining.wait_for(|it| *it) => break,
            accepted = accept => accepted,
        };
        match (place, accepted) {
            (Ok(place), Ok((stream, _))) => {
                // Tokens are small and each is worth sending at once.
                let _ = stream.set_nodelay(true);
                let (tls, router, draining) = (tls.clone(), router.clone(), draining.clone());
                tokio::spawn(async move {
                    // Kept for as long as the connection lasts.
                    let _place = place;
                    let Some(tls) = tls else { return converse(stream, router, patience, draining).await };
                    // Whoever cannot agree on how to speak is not spoken with.
                    if let Ok(Ok(stream)) = timeout(patience.header_time_max, tls.acceptor().accept(stream)).await {
                        converse(stream, router, patience, draining).await;
                    }
                });
            }
            _ => sleep(ACCEPT_PAUSE).await,
        }
    }
    // New clients are refused from here on, not left waiting.
    drop(listener);
    let _ = places.acquire_many(n_places).await;
}

/// One connection.
async fn converse<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
    stream: S,
    router: Router,
    patience: Patience,
    mut draining: watch::Receiver<bool>,
) {
    let io = TokioIo::new(Patient { stream, blocked_max: patience.write_time_max, blocked: None });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(patience.header_time_max)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(io, TowerToHyperService::new(router));
    let mut connection = pin!(connection);
    let drained = async {
        let _ = draining.wait_for(|it| *it).await;
    };
    // Errors are the client's: it went away, or what it sent is not HTTP.
    tokio::select! {
        _ = connection.as_mut() => return,
        () = drained => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = connection.await;
}

/// A stream that fails once its other end has not taken a byte for some time.
#[derive(Debug)]
struct Patient<S> {
    stream: S,
    blocked_max: Duration,
    /// Set while a write waits.
    blocked: Option<Pin<Box<Sleep>>>,
}

impl<S> Patient<S> {
    fn watched<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.blocked = None;
            return written;
        }
        let blocked = self.blocked.get_or_insert_with(|| Box::pin(sleep(self.blocked_max)));
        blocked.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watched(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.watched(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.watched(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn a_reader_that_stops_ends_the_connection_and_a_slow_one_does_not() {
        let blocked_max = Duration::from_millis(100);
        let (stream, mut reader) = tokio::io::duplex(8);
        let mut patient = Patient { stream, blocked_max, blocked: None };
        let slow = async {
            let mut one = [0];
            for _ in 0..24 {
                sleep(blocked_max / 4).await;
                reader.read_exact(&mut one).await.unwrap();
            }
        };
        let (written, ()) = tokio::join!(patient.write_all(&[7; 32]), slow);
        written.unwrap();
        let error = patient.write_all(&[7; 32]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
