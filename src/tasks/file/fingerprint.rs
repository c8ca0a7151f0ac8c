//! Whether a file is still what it was.

use sha2::{Digest, Sha256};

/// What a file holds, in a line: its length and its SHA-256, which `sha256sum` computes too.
///
/// ```
/// let of = gradstone::tasks::file::fingerprint(b"");
/// assert_eq!(of, "0 bytes, sha256 e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
/// ```
pub fn fingerprint(bytes: &[u8]) -> String {
    let digest: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{} bytes, sha256 {digest}", bytes.len())
}
