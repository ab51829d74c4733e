#pragma once
// shim_open loads the driver's library and initialises it, once: 0, or what cuInit gave, or -1, with the reason in n bytes of
// text. A library that is open stays open.
int shim_open(const char *library, char *reason, int n);
