//! The keys whose desired states a device takes: the one of its configuration, until a desired state names others.

use offramp_proto::{Desired, PublicKey, VerifyError};
use offramp_store::{Store, StoreError};
use tracing::{info, warn};

/// Where the store keeps them: the configured one first, then those that are trusted in its stead.
const KEPT: &str = "trusted keys";
/// Bytes of a key.
const KEY: usize = 32;

/// The keys that are trusted.
#[derive(Debug)]
pub(crate) struct Trust {
    /// The key of the configuration. Whoever changes it begins anew.
    root: PublicKey,
    keys: Vec<PublicKey>,
}

impl Trust {
    /// Takes up what the store holds, if it followed from this configuration.
    pub(crate) fn open(store: &Store, root: &PublicKey) -> Result<Self, StoreError> {
        let kept = store.value(KEPT)?.unwrap_or_default();
        let keys: Option<Vec<PublicKey>> = kept
            .chunks(KEY)
            .map(|key| key.try_into().ok().and_then(PublicKey::from_bytes))
            .collect();
        let keys = match keys.as_deref() {
            Some([first, keys @ ..]) if first == root && !keys.is_empty() => keys.to_vec(),
            Some([]) => vec![root.clone()],
            _ => {
                warn!("another controller key is configured than before: it alone is trusted");
                vec![root.clone()]
            }
        };
        Ok(Self {
            root: root.clone(),
            keys,
        })
    }

    pub(crate) fn keys(&self) -> &[PublicKey] {
        &self.keys
    }

    /// A desired state that one of the keys has signed.
    pub(crate) fn verify(&self, signed: &[u8]) -> Result<Desired, VerifyError> {
        let mut refused = VerifyError::Signature;
        for key in &self.keys {
            match key.verify(signed) {
                Ok(desired) => return Ok(desired),
                Err(error) => refused = error,
            }
        }
        Err(refused)
    }

    /// Trusts these keys from now on, also after a restart; without any, nothing changes. The word is that of a desired
    /// state, which was verified and is stored. An error means that they are not kept.
    pub(crate) fn take(&mut self, store: &Store, keys: &[PublicKey]) -> Result<(), StoreError> {
        if keys.is_empty() || keys == self.keys {
            return Ok(());
        }
        let kept = std::iter::once(&self.root).chain(keys);
        let kept: Vec<u8> = kept.flat_map(PublicKey::to_bytes).collect();
        info!(?keys, "keys of the controller");
        self.keys = keys.to_vec();
        store.set_value(KEPT, &kept)
    }
}

#[cfg(test)]
mod tests {
    use offramp_proto::SigningKey;
    use offramp_store::Limits;
    use offramp_test_support::temp_dir;

    use super::*;

    #[test]
    fn keys_are_kept_until_another_one_is_configured() {
        let folder = temp_dir();
        let open = || {
            Store::open(&folder.path().join("state.redb"), Limits::default())
                .unwrap()
                .0
        };
        let [a, b, c] = [1, 2, 3].map(|seed| SigningKey::from_seed(&[seed; 32]).public());
        let store = open();
        let mut trust = Trust::open(&store, &a).unwrap();
        assert_eq!(trust.keys(), std::slice::from_ref(&a));
        trust.take(&store, &[]).unwrap();
        trust.take(&store, &[a.clone(), b.clone()]).unwrap();
        trust.take(&store, std::slice::from_ref(&b)).unwrap();
        drop(store);
        let store = open();
        assert_eq!(Trust::open(&store, &a).unwrap().keys(), [b]);
        assert_eq!(Trust::open(&store, &c).unwrap().keys(), [c]);
        store.set_value(KEPT, b"damaged").unwrap();
        assert_eq!(Trust::open(&store, &a).unwrap().keys(), [a]);
    }
}
