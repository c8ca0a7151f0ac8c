//! A setting that is a name, or a table that starts from a name (`preset`) and changes some of its keys.

use crate::error::Result;
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::fmt;
use std::marker::PhantomData;

/// The keys of such a table, all of them optional.
pub(super) trait Named: DeserializeOwned {
    /// What the keys come to.
    type Settings;
    /// What is expected, for an error.
    const EXPECTED: &str;

    /// The keys that a name alone stands for.
    fn named(name: &str) -> Self;

    /// What the keys come to.
    fn settings(self) -> Result<Self::Settings>;
}

/// Reads a name or a table.
pub(super) fn name_or_table<'de, D: Deserializer<'de>, F: Named>(
    from: D,
) -> Result<F::Settings, D::Error> {
    struct NameOrTable<F>(PhantomData<F>);
    impl<'de, F: Named> Visitor<'de> for NameOrTable<F> {
        type Value = F::Settings;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(F::EXPECTED)
        }

        fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<F::Settings, E> {
            F::named(name).settings().map_err(E::custom)
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<F::Settings, A::Error> {
            let fields: F = Deserialize::deserialize(MapAccessDeserializer::new(map))?;
            fields.settings().map_err(A::Error::custom)
        }
    }
    from.deserialize_any(NameOrTable::<F>(PhantomData))
}
