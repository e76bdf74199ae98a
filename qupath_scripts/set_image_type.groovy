/*
 * Makes the current image one of type Brightfield (H&E), if it has no type yet; any other type stays.
 *
 * For projects that hnscc-qp made where there was no QuPath. It changes nothing else.
 *
 * How to run it: drop this file on QuPath's window, then Run (the open image) or Run > Run for project
 * (all images). Without the window: QuPath script --project=project.qpproj --save set_image_type.groovy
 * For QuPath 0.4 to 0.7. For research use only, not for diagnosis.
 */
import qupath.lib.images.ImageData
import static qupath.lib.scripting.QP.getCurrentImageData
import static qupath.lib.scripting.QP.getProjectEntry

def entry = getProjectEntry()
if (entry == null) {
    println 'Open an image of a project first.'
    return
}
def imageData = getCurrentImageData()
def former = imageData.getImageType()
if (former == null || former == ImageData.ImageType.UNSET) {
    imageData.setImageType(ImageData.ImageType.BRIGHTFIELD_H_E)
    println entry.getImageName() + ': now of type ' + imageData.getImageType()
} else {
    println entry.getImageName() + ': is of type ' + former + ' already, nothing changed'
}
