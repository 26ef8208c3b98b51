//! One link to the daemon, and the requests that wait for its answers.
//!
//! ```text
//!   unlinked --attach--> linked --attach--> linked (the old link's requests are told that it broke)
//!      ^                    |
//!      '--- the stream ends-'   (a capture, a sleep, a daemon that goes; the same for its requests)
//! ```

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use tonic::Streaming;

use crate::errors::Result;
use crate::pb::{InsideAnswer, InsideRequest};
use crate::sync::lock;

/// Requests that wait at once; the daemon takes fewer.
const WAITING: usize = 16;
/// A link comes moments after a start, a wake and a daemon's return.
const LINK: Duration = Duration::from_secs(3);
/// The daemon answers sooner, if only that it took too long.
const ANSWER: Duration = Duration::from_secs(60);

pub enum Outcome {
    Answered(InsideAnswer),
    /// No daemon listens.
    Unlinked,
    /// The link broke before the answer came: whether it was done is not known.
    Broken,
    /// So many wait already.
    Busy,
    Late,
}

type Requests = mpsc::Sender<Result<InsideRequest>>;

#[derive(Default)]
struct State {
    requests: Option<Requests>,
    waiting: HashMap<u64, oneshot::Sender<InsideAnswer>>,
    last_id: u64,
}

#[derive(Clone)]
pub struct Inside {
    state: Arc<Mutex<State>>,
    /// The number of the link; an even one is none.
    link: watch::Sender<u64>,
}

impl Default for Inside {
    fn default() -> Inside {
        Inside {
            state: Arc::default(),
            link: watch::Sender::new(0),
        }
    }
}

impl Inside {
    /// The newest link counts: whoever opened the one before it is gone, or will not notice.
    pub fn attach(
        &self,
        mut answers: Streaming<InsideAnswer>,
    ) -> mpsc::Receiver<Result<InsideRequest>> {
        let (requests, receiver) = mpsc::channel(WAITING);
        let own = requests.clone();
        let mut link = self.link.subscribe();
        {
            let mut state = lock(&self.state);
            state.requests = Some(requests);
            state.waiting.clear();
        }
        self.link.send_modify(|number| *number = (*number | 1) + 2);
        let number = *self.link.borrow();
        let hub = self.clone();
        tokio::spawn(async move {
            loop {
                let next = tokio::select! {
                    next = answers.message() => next,
                    () = own.closed() => break,
                    _ = link.wait_for(|now| *now != number) => break,
                };
                match next {
                    Ok(Some(answer)) => hub.answered(number, answer),
                    _ => break,
                }
            }
            hub.detach(number);
        });
        receiver
    }

    fn answered(&self, number: u64, answer: InsideAnswer) {
        if *self.link.borrow() == number
            && let Some(waits) = lock(&self.state).waiting.remove(&answer.id)
        {
            let _ = waits.send(answer);
        }
    }

    fn detach(&self, number: u64) {
        self.link.send_if_modified(|now| {
            let current = *now == number;
            if current {
                let mut state = lock(&self.state);
                state.requests = None;
                state.waiting.clear();
                *now += 1;
            }
            current
        });
    }

    /// As long as it takes, within bounds.
    pub async fn ask(&self, mut request: InsideRequest) -> Outcome {
        let mut link = self.link.subscribe();
        if timeout(LINK, link.wait_for(|number| number % 2 == 1))
            .await
            .is_err()
        {
            return Outcome::Unlinked;
        }
        let (sender, receiver) = oneshot::channel();
        let id = {
            let mut state = lock(&self.state);
            let Some(requests) = state.requests.clone() else {
                return Outcome::Broken;
            };
            if state.waiting.len() >= WAITING {
                return Outcome::Busy;
            }
            state.last_id += 1;
            request.id = state.last_id;
            let id = request.id;
            match requests.try_send(Ok(request)) {
                Ok(()) => {}
                Err(mpsc::error::TrySendError::Full(_)) => return Outcome::Busy,
                Err(mpsc::error::TrySendError::Closed(_)) => return Outcome::Broken,
            }
            state.waiting.insert(id, sender);
            id
        };
        match timeout(ANSWER, receiver).await {
            Ok(Ok(answer)) => Outcome::Answered(answer),
            Ok(Err(_)) => Outcome::Broken,
            Err(_) => {
                lock(&self.state).waiting.remove(&id);
                Outcome::Late
            }
        }
    }
}
