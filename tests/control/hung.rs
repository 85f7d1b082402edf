//! A disk under the metadata that hangs, seen from the command line. What hangs is the open of a file under a lease,
//! which needs neither root nor a device.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::signal::Signal;

use super::daemon::{directory, end, farpoint, start};

/// Of `linux/fcntl.h`; the libc package lacks it.
const F_SETSIG: i32 = 10;

/// Whoever else opens the file waits until this goes, or for as long as the kernel has patience (45 s).
struct Lease(File);

impl Lease {
    fn take(path: &Path) -> Self {
        let file = OpenOptions::new().read(true).write(true).open(path).expect("opened");
        // Told of the other by a signal that does nothing, not by one that ends the process.
        Self::control(&file, F_SETSIG, libc::SIGURG);
        Self::control(&file, libc::F_SETLEASE, libc::F_WRLCK);
        Self(file)
    }

    #[expect(unsafe_code, reason = "nix has no leases")]
    fn control(file: &File, command: i32, argument: i32) {
        // SAFETY: both commands take a number and touch no memory.
        assert_eq!(unsafe { libc::fcntl(file.as_raw_fd(), command, argument) }, 0, "command {command}");
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        Self::control(&self.0, libc::F_SETLEASE, libc::F_UNLCK);
    }
}

fn run(at: &Path, arguments: &[&str]) -> String {
    let output = farpoint(at, arguments).output().expect("runs");
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn metadata_that_does_not_answer_at_the_start_keeps_no_other_volume_and_is_known_once_it_does() {
    let directory = directory();
    let at = directory.path();
    let daemon = start(at);
    for name in ["good", "hung"] {
        let [primary, secondary] = ["a", "b"].map(|side| at.join(format!("{name}-{side}")));
        for path in [&primary, &secondary] {
            File::create(path).and_then(|file| file.set_len(1 << 20)).expect("a file");
        }
        let (primary, secondary) = (primary.display().to_string(), secondary.display().to_string());
        let said = run(at, &["create", name, "--primary", &primary, "--secondary", &secondary]);
        assert_eq!(said, format!("created {name}\n"));
    }
    assert_eq!(end(daemon, Signal::SIGTERM).status.code(), Some(0));

    let lease = Lease::take(&at.join("state/hung.meta"));
    let began = Instant::now();
    let daemon = start(at);
    assert!(began.elapsed() < Duration::from_secs(15), "ready after {:?}", began.elapsed());
    let status = run(at, &["status"]);
    assert!(
        status.starts_with("good ") && status.contains("hung state:left-out\n  reason:\"its metadata does"),
        "{status}"
    );
    let said = run(at, &["up", "hung"]);
    assert!(said.contains("hung: its metadata does not answer; see to its disk"), "{said}");

    drop(lease);
    let answered = Instant::now();
    while !run(at, &["status"]).contains("hung state:down") {
        assert!(answered.elapsed() < Duration::from_secs(15), "it is not known");
        std::thread::sleep(Duration::from_millis(50));
    }

    // Nor does it keep the end of the daemon, if it hangs again at the next start.
    assert_eq!(end(daemon, Signal::SIGTERM).status.code(), Some(0));
    let _lease = Lease::take(&at.join("state/hung.meta"));
    let daemon = start(at);
    let began = Instant::now();
    assert_eq!(end(daemon, Signal::SIGTERM).status.code(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(15), "ended after {:?}", began.elapsed());
}
