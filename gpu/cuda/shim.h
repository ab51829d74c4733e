#pragma once
enum { SHIM_NO_LIBRARY = -1 };
// shim_open loads the driver's library and initialises it, once: 0, or what cuInit gave, or SHIM_NO_LIBRARY, with the reason in n bytes of
// text. A library that is open stays open.
int shim_open(const char *library, char *reason, int n);
