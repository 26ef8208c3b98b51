//! Tells a request body that ended from one that was cut off.
//!
//! The HTTP library ends a body whose caller cancelled in the same way as one that is complete, and an upload
//! must not be taken for whole when it is not. So every body is watched on its way in.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{Extensions, Request};
use tonic::codegen::{Body as HttpBody, Service};
use tonic::server::NamedService;

#[derive(Clone, Default)]
struct Broken(Arc<AtomicBool>);

/// True when the body of the request with these extensions was cut off.
pub fn is_broken(extensions: &Extensions) -> impl Fn() -> bool + Send + 'static {
    let broken = extensions.get::<Broken>().cloned().unwrap_or_default();
    move || broken.0.load(Ordering::Relaxed)
}

/// The service, with every body watched.
#[derive(Clone)]
pub struct Whole<S>(pub S);

impl<S: NamedService> NamedService for Whole<S> {
    const NAME: &'static str = S::NAME;
}

impl<S: Service<Request<Body>>> Service<Request<Body>> for Whole<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> S::Future {
        let broken = Broken::default();
        request.extensions_mut().insert(broken.clone());
        self.0
            .call(request.map(|body| Body::new(Watched { body, broken })))
    }
}

struct Watched {
    body: Body,
    broken: Broken,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Status>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        let cut = match &frame {
            Poll::Ready(None) => !self.body.is_end_stream(),
            Poll::Ready(Some(Err(_))) => true,
            _ => false,
        };
        if cut {
            self.broken.0.store(true, Ordering::Relaxed);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}
