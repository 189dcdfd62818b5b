"""Stage 3: make an adapter ready. Name -> digest -> verified, lowered weights in host memory and on the device."""
