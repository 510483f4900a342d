//! What runs beside a test: futures on a thread of their own, until dropped.

use crate::lab::Place;
use std::future::Future;
use std::thread::JoinHandle;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// The thread and its runtime.
pub struct Background {
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Background {
    /// Idle until given something.
    pub fn new() -> Background {
        Background::begin(|| {})
    }

    /// The same in a network of its own: its sockets are there.
    pub fn within(place: &Place) -> Background {
        let place = place.clone();
        Background::begin(move || place.enter())
    }

    fn begin(enter: impl FnOnce() + Send + 'static) -> Background {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            enter();
            drop(runtime.block_on(stopped));
        });
        Background { handle, stop: Some(stop), thread: Some(thread) }
    }

    /// Runs `future` there, and waits for what comes of it.
    pub fn run<T: Send + 'static>(&self, future: impl Future<Output = T> + Send + 'static) -> T {
        let (sender, result) = std::sync::mpsc::channel();
        self.spawn(async move { sender.send(future.await).unwrap() });
        result.recv().expect("the future did not panic")
    }

    /// Runs `future` there.
    pub fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        self.handle.spawn(future);
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.stop.take();
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
