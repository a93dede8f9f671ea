"""How every component is: asked, looked at, and made into service tiers."""
