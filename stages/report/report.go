// Package report shows what a run has learnt: PNG pictures of a scan, its reconstruction and the error in three planes;
// and a page of HTML with curves, pictures and what happened, one file that needs no other.
//
// Pictures follow the radiological convention: the patient faces the viewer or lies with his feet towards him, so his
// right is on the left of axial and coronal planes; the front is up in axial planes and on the left in sagittal ones;
// the head is up. The letters at a picture's edges say so (R right, A anterior, S superior). Input volumes are
// canonical (RAS+: x to the right, y to the front, z to the head), x fastest, in [-1, 1].
//
// cut.go takes planes out of volumes, worst.go finds those with large errors, picture.go lays them out and writes the
// file, draw.go and colour.go draw. page.go is the page, with page.html, page.css and page.js; chart.go draws its curves,
// thumb.go makes pictures small enough for it.
package report
