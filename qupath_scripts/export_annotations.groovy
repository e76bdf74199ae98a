/*
 * Writes the current image's annotations and hnscc-qp's detections, with the verdicts on them, as GeoJSON.
 *
 * Writes <project folder>/exported-annotations/<entry id> <image name>.geojson, in place of a former one.
 * hnscc-qp reads projects of QuPath 0.3 to 0.7 by itself; this is for sharing, and for QuPaths that it
 * can't read. Other detections (such as cells) are left out. The image itself is not changed.
 *
 * How to run it: drop this file on QuPath's window, then Run (the open image) or Run > Run for project
 * (all images). Without the window: QuPath script --project=project.qpproj export_annotations.groovy
 * For QuPath 0.4 to 0.7. For research use only, not for diagnosis.
 */
import java.nio.file.Files
import java.nio.file.StandardCopyOption
import qupath.lib.io.PathIO
import static qupath.lib.scripting.QP.getCurrentHierarchy
import static qupath.lib.scripting.QP.getProject
import static qupath.lib.scripting.QP.getProjectEntry

def entry = getProjectEntry()
if (entry == null) {
    println 'Open an image of a project first.'
    return
}
def image = entry.getImageName()

def hierarchy = getCurrentHierarchy()
def annotations = hierarchy.getAnnotationObjects() as List
def detections = hierarchy.getDetectionObjects().findAll { it.getPathClass()?.toString()?.startsWith('AI: ') }

def folder = getProject().getPath().getParent().resolve('exported-annotations')
def name = image.replaceAll('[\\x00-\\x1f\\x7f<>:"/\\\\|?*]', '_').take(80).replaceAll('[ .]+\\z', '')
def file = folder.resolve(entry.getID() + ' ' + name + '.geojson')
def partial = folder.resolve(entry.getID() + ' being written')
Files.createDirectories(folder)
def collection = PathIO.GeoJsonExportOptions.FEATURE_COLLECTION
PathIO.exportObjectsAsGeoJSON(partial.toFile(), annotations + detections, collection)

// The image may have been renamed since it was exported: its id alone names it.
folder.toFile().listFiles().each {
    if (it.getName().startsWith(entry.getID() + ' ') && it.getName().endsWith('.geojson')) {
        it.delete()
    }
}
Files.move(partial, file, StandardCopyOption.REPLACE_EXISTING)

def rejected = detections.count { it.getPathClass().toString() == 'AI: Rejected' }
println image + ': ' + annotations.size() + ' annotations and ' + detections.size() + ' AI detections (' +
    rejected + ' rejected) written to ' + file
